"""Reports as HTML pages: one run, or several beside each other."""

from fedlora.simulations.report.comparison import write_comparison
from fedlora.simulations.report.page import write_report

__all__ = ["write_comparison", "write_report"]
