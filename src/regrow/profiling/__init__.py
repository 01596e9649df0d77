# SPDX-License-Identifier: MIT
"""Parameters, MACs, latency, sensitivity and torchmetrics metrics."""
