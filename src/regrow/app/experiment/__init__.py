# SPDX-License-Identifier: MIT
"""Experiments: train, prune, measure, write result.json."""
