# SPDX-License-Identifier: MIT
"""The report: one table and one page from the results of many runs, without torch.

Example:
    >>> from regrow.report import write_report
    >>> write_report.__name__
    'write_report'
"""

from regrow.report.write import write_report

__all__ = ["write_report"]
