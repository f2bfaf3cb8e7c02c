"""`gtp-vision hello`."""

from gtp_vision.cli.verb import Verb


def _run(arguments: object, overrides: list[str]) -> int:
    print("hello")
    return 0


HELLO = Verb("hello", "print a word", run=_run)
