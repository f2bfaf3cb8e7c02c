"""Texts of untrusted files cannot become mark-up of a page."""

from __future__ import annotations

from gtp_vision.core.markdown import plain


def test_a_text_stays_on_its_line_and_in_its_cell() -> None:
    assert plain("cup | `rm`\n# title <img> [a](b)") == "cup    rm  # title  img   a (b)"
    assert plain("été, 3 × 2") == "été, 3 × 2"
