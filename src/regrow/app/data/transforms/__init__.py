# SPDX-License-Identifier: MIT
"""Image transforms and augmentation."""
