# SPDX-License-Identifier: MIT
"""Physical removal of channels, verified against the masked model."""
