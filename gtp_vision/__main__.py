"""Entry point of `python -m gtp_vision` and of `accelerate launch -m gtp_vision`."""

import sys

from gtp_vision.cli.main import main

sys.exit(main())
