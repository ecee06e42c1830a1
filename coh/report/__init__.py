"""What a run did and what its model learned, as one page that can be shown: `python -m coh.report OUTPUT_DIR`."""

from coh.report.command import main, write_report

__all__ = ["main", "write_report"]
