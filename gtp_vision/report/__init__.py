"""The report page: reading run folders, drawing their curves, and putting both on a page."""

from gtp_vision.report.page import build_report

__all__ = ["build_report"]
