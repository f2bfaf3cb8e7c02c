"""`gtp-vision VERB`."""


def main() -> int:
    """Entry point."""
    print("gtp-vision")
    return 0
