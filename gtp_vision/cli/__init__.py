"""The command line: one file a verb; `main` finds them."""
