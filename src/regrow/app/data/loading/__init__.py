# SPDX-License-Identifier: MIT
"""Order, transforms and loaders of images, whose position is saved and restored."""
