# SPDX-License-Identifier: MIT
"""Whole experiments: train, prune, measure, write result.json."""
