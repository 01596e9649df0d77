# SPDX-License-Identifier: MIT
"""Small data sets held in memory, whose batches depend on (seed, epoch, batch) alone."""
