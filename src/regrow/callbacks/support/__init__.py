# SPDX-License-Identifier: MIT
"""Parts used by single callbacks."""
