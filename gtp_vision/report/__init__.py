"""The report page: reads run folders, draws their curves, and renders both as one HTML file."""

from gtp_vision.report.page import build_report

__all__ = ["build_report"]
