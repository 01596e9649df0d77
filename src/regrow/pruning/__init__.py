# SPDX-License-Identifier: MIT
"""The pruner and its parts: state, enforcement, removed weights, regrowth."""
