"""Suites of tasks under a written protocol: planned, run, resumed, and told beside what others have published."""
