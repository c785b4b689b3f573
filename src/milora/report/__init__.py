"""Run folders and comparisons as one page: read as files, without torch."""

from milora.report.write import FORMATS, write_report

__all__ = ["FORMATS", "write_report"]
