"""The command line: one verb a file; `main` runs them."""
