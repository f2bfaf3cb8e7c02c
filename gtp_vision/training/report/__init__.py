"""The report page: reading run folders, drawing their curves, and putting both on a page."""

from gtp_vision.training.report.page import build_report

__all__ = ["build_report"]
