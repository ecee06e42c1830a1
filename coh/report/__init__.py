"""What a run did and what its model learned, as one page that can be shown: `python -m coh.report OUTPUT_DIR`."""

from coh.report.command import main, write_report
from coh.report.record import ReportError

__all__ = ["ReportError", "main", "write_report"]
