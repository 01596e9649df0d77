# SPDX-License-Identifier: MIT
"""One resumable fit, built from a configuration."""
