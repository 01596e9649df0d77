# SPDX-License-Identifier: MIT
"""Hydra entry, sweeps, signals and failures."""
