import sys

import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.extras import importing, optional, require

SENTENCE = r"^reading birds needs ornithology, which is not installed; run pip install 'gtp-vision\[birds\]'$"


def test_a_missing_package_names_purpose_and_extra() -> None:
    with pytest.raises(GtpVisionError, match=SENTENCE), importing("birds", "reading birds"):
        import ornithology.songs  # noqa: F401
    with pytest.raises(GtpVisionError, match=SENTENCE):
        require("birds", "reading birds", "json", "ornithology")
    require("birds", "reading birds", "json")


def test_an_optional_module_is_missing_only_when_it_is_used() -> None:
    songs = optional("ornithology.songs", "birds", "reading birds")
    with pytest.raises(GtpVisionError, match=SENTENCE):
        songs.listen()
    assert optional("json", "birds", "reading birds") is sys.modules["json"]


def test_a_package_that_fails_inside_is_quoted_and_own_defects_are_not_hidden() -> None:
    sentence = r"fails \(cannot import name 'tides'.*gtp-vision\[birds\]"
    with pytest.raises(GtpVisionError, match=sentence), importing("birds", "reading birds"):
        from json import tides  # type: ignore[attr-defined]  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="gtp_vision"), importing("birds", "reading birds"):
        import gtp_vision.ornithology  # noqa: F401
