# SPDX-License-Identifier: MIT
"""Sharded parameters, collectives, and checks that ranks agree."""
