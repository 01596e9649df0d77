# SPDX-License-Identifier: MIT
"""Pruning without retraining: scores and refitted weights from unlabelled data."""
