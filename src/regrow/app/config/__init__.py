# SPDX-License-Identifier: MIT
"""Configuration: composition, recipes, hashing, instantiation."""
