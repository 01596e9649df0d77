# SPDX-License-Identifier: MIT
"""Lightning callbacks: thin shells that translate trainer events for the core."""

from regrow.utils.lightning_classes import lightning_classes

lightning_classes("Callback")  # before modules import Lightning: log lines keep their logger
