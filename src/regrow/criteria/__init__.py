# SPDX-License-Identifier: MIT
"""Importance scores: magnitude, gradients, movement, saliency."""
