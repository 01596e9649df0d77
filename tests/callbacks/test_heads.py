# SPDX-License-Identifier: MIT
"""Attention heads in whole fits: pruned gradually, never in part, and resumed."""

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, Net, copied, equal, fit, samples
from torch import nn

from regrow import MagnitudePruning
from regrow.callbacks.core.base import Callback
from regrow.data.tensor_loader import BatchLoader


class Attentive(Net):
    """Each of six numbers is a token; one attention layer of four heads, and a classifier."""

    def __init__(self):
        super().__init__(ADAM)
        torch.manual_seed(0)
        self.body = nn.Sequential(Tokens(), nn.Linear(48, 3))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, x):
        tokens = x.unsqueeze(-1) * torch.linspace(-1, 1, 8)
        return self.attention(tokens, tokens, tokens)[0].flatten(1)


def pruned_heads(module):
    """The heads of which nothing is left, counted in the weights; none may be pruned in part."""
    attention = module.body[0].attention
    rows = (attention.in_proj_weight.detach() == 0).view(3, 4, 2, 8).transpose(0, 1).flatten(1)
    columns = (attention.out_proj.weight.detach() == 0).view(8, 4, 2).transpose(0, 1).flatten(1)
    zero = torch.cat([rows, columns], 1)
    assert torch.equal(zero.any(1), zero.all(1))
    return int(zero.all(1).sum())


class Watch(Callback):
    def __init__(self):
        super().__init__()
        self.counts = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.counts.append(pruned_heads(pl_module))


def run(*callbacks, **kw):
    pruning, watch, module = (
        MagnitudePruning(
            0.75, granularity="head", include=["attention"], schedule="linear",
            begin=0, end="12it", every="4it",
        ),
        Watch(),
        Attentive(),
    )  # fmt: skip
    data = BatchLoader(*samples().tensors, batch_size=4)
    fit(module, pruning, watch, *callbacks, data=data, **kw)
    return watch.counts, copied(module), pruning.history


def test_heads_are_pruned_one_by_one_and_stay_zero():
    counts, _, history = run()
    assert counts == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert [entry["after"] for entry in history] == [0.25, 0.5, 0.75]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    saves = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    whole = run(saves, enable_checkpointing=True)
    for step in (4, 9, 14):
        resumed = run(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert equal(resumed[1:], whole[1:])
