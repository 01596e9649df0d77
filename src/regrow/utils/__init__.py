# SPDX-License-Identifier: MIT
"""Helpers without knowledge of pruning: errors, names, optimizer state, random generators."""
