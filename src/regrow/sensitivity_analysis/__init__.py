# SPDX-License-Identifier: MIT
"""Sensitivity of the accuracy to pruning one layer or channel group at a time."""
