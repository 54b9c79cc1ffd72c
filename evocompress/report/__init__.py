"""What a run found, for people: an HTML page, a Markdown summary and a table for the terminal.

Interface: `write_report`, `write_rounds_report`, `write_sweep_report`, `table`.

Imported by: `api`, `cli`.
"""

from evocompress.report.page import write_report
from evocompress.report.rounds import write_rounds_report
from evocompress.report.sweep import write_sweep_report
from evocompress.report.terminal import table
from evocompress.report.trials import sweep_table

__all__ = ["sweep_table", "table", "write_report", "write_rounds_report", "write_sweep_report"]
