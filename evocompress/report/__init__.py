"""What a run found, for people: an HTML page, a Markdown summary and a table for the terminal."""

from evocompress.report.page import write_report
from evocompress.report.terminal import table

__all__ = ["table", "write_report"]
