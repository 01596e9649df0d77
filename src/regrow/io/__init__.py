# SPDX-License-Identifier: MIT
"""Checkpoints, atomic files and export formats."""
