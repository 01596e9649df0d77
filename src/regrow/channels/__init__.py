# SPDX-License-Identifier: MIT
"""Channels that really go: found, chosen, cut and verified on any traceable network."""

from regrow.channels.coupling import Group, groups
from regrow.channels.plan import Plan, carry, load
from regrow.channels.pruning import prune
from regrow.channels.recalibration import recalibrate
from regrow.channels.scores import slimming
from regrow.channels.tables import LatencyTable

__all__ = [
    "Group",
    "LatencyTable",
    "Plan",
    "carry",
    "groups",
    "load",
    "prune",
    "recalibrate",
    "slimming",
]
