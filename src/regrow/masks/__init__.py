# SPDX-License-Identifier: MIT
"""What is pruned: targets, granularity, distributions, exact top-k, masks."""
