# SPDX-License-Identifier: MIT
"""Ranks that calibrate use the inputs of all ranks, and have equal weights."""

import gloo_ranks
import pytest
import torch
from tiny_fits import equal

pytestmark = [pytest.mark.slow, pytest.mark.guard]

CRITERIA = ("obs", "wanda", "sparsegpt", "magnitude")
CODE = f"""
from regrow import PostTrainingPruning

class Forward(Net):
    def forward(self, inputs):
        return self.body(inputs)

class First(Callback):
    def on_before_zero_grad(self, trainer, module, optimizer):
        if not hasattr(self, "state"):
            self.state = state(module)

for criterion in {CRITERIA!r}:
    module, pruning, first = Forward(ADAM), PostTrainingPruning(0.5, criterion=criterion), First()
    own = torch.utils.data.Subset(samples(64), range(RANK, 64, WORLD))
    job(pruning, first, use_distributed_sampler=False).fit(module, DataLoader(own, 4))
    said[criterion] = {{"masks": dict(pruning.masks), "first": first.state}}
    if RANK == 0:  # alone, with batches that hold what both ranks see
        alone, first = PostTrainingPruning(0.5, criterion=criterion), First()
        trainer(alone, first, max_steps=1).fit(Forward(ADAM), DataLoader(samples(64), 8))
        said[criterion]["alone"] = {{"masks": dict(alone.masks), "first": first.state}}
"""


def test_masks_and_refitted_weights_use_the_inputs_of_all_ranks(tmp_path):
    first, other = gloo_ranks.run(CODE, tmp_path)
    for criterion in CRITERIA:
        mine, alone = first[criterion], first[criterion]["alone"]
        assert equal(mine["masks"], other[criterion]["masks"])
        assert equal(mine["first"], other[criterion]["first"])
        if criterion == "obs":  # draws directions for each batch, and batches differ here
            pairs = [(mine["masks"][name], mask) for name, mask in alone["masks"].items()]
            same = sum(int((one == two).sum()) for one, two in pairs)
            assert same > 0.8 * sum(mask.numel() for _, mask in pairs)
            continue
        assert equal(mine["masks"], alone["masks"])
        for name, value in alone["first"].items():
            assert torch.allclose(mine["first"][name], value, atol=1e-5), (criterion, name)


GRADUAL = """
from regrow import MagnitudePruning

class Forward(Net):
    def forward(self, inputs):
        return self.body(inputs)

module = Forward(ADAM)
pruning = MagnitudePruning(0.5, schedule="linear", begin=0, end=0.9, every="3it", refit=True)
job(pruning).fit(module, loader())
said |= {"weights": state(module), "refitted": [e["refitted"] for e in pruning.history]}
"""


def test_refits_at_events_use_the_inputs_of_all_ranks(tmp_path):
    first, other = gloo_ranks.run(GRADUAL, tmp_path)
    assert equal(first["weights"], other["weights"])
    assert first["refitted"] == other["refitted"]
    assert all(count == 32 for rows in first["refitted"] for count in rows.values())
