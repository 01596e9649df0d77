# SPDX-License-Identifier: MIT
"""When to prune: times, schedules and the progress of a fit."""
