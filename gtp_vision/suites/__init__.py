"""Suites of tasks under a written protocol: planned, run, resumed, and compared with published numbers."""
