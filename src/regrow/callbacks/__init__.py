# SPDX-License-Identifier: MIT
"""Lightning callbacks: thin shells that translate trainer events for the core."""
