# SPDX-License-Identifier: MIT
"""The command `regrow`: whole experiments from configuration files."""
