# SPDX-License-Identifier: MIT
"""Shared machinery of the pruning callbacks: session, dispatch, clock, checks."""
