# SPDX-License-Identifier: MIT
"""Channels that really go: found, chosen, cut and verified on any traceable network."""

from regrow.calibration.batch_norm_recalibration import recalibrate
from regrow.channels.activations import Activations
from regrow.channels.cut.channel_cut import ChannelCut, slice_optimizer_state
from regrow.channels.graph.groups import Group, groups
from regrow.channels.importance import MeanScores
from regrow.channels.latency_budget import LatencyTable
from regrow.channels.prune_channels import prune
from regrow.channels.regularization import slimming

__all__ = [
    "Activations",
    "ChannelCut",
    "Group",
    "LatencyTable",
    "MeanScores",
    "groups",
    "prune",
    "recalibrate",
    "slice_optimizer_state",
    "slimming",
]
