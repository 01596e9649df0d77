# SPDX-License-Identifier: MIT
"""Trained sparse networks run by kernels that use the zeros."""
