# SPDX-License-Identifier: MIT
"""Data sets whose batches depend on (seed, epoch, batch) alone: in memory, folders, shards."""
