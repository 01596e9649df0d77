# SPDX-License-Identifier: MIT
"""Masks that are functions of learned scores."""
