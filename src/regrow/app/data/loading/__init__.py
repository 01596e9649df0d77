# SPDX-License-Identifier: MIT
"""Loaders whose position is saved and restored."""
