# SPDX-License-Identifier: MIT
"""Report on many runs: one table and one HTML page, without torch."""

from regrow.report.write import write_report

__all__ = ["write_report"]
