# SPDX-License-Identifier: MIT
"""Channel dependency graph: which channels must be cut together."""
