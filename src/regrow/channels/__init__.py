# SPDX-License-Identifier: MIT
"""Channels that really go: found, chosen, cut and verified on any traceable network."""

from regrow.channels.batch_norm_recalibration import recalibrate
from regrow.channels.cut.channel_cut import ChannelCut, carry, load
from regrow.channels.graph.groups import Group, groups
from regrow.channels.importance import slimming
from regrow.channels.latency_budget import LatencyTable
from regrow.channels.prune_channels import prune

__all__ = [
    "ChannelCut",
    "Group",
    "LatencyTable",
    "carry",
    "groups",
    "load",
    "prune",
    "recalibrate",
    "slimming",
]
