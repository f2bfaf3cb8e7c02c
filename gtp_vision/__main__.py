"""`python -m gtp_vision`, which is also what `accelerate launch -m gtp_vision` starts."""

import sys

from gtp_vision.cli.main import main

sys.exit(main())
