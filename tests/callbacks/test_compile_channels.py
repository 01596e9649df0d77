# SPDX-License-Identifier: MIT
"""Channels of a compiled network are cut like those of a plain one, with the same names."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, Net, equal, fit, read
from torch import nn
from torch._dynamo.testing import CompileCounter

import regrow
from regrow import ChannelPruning, MagnitudePruning, Table
from regrow.utils.names import strip_compile_prefix


class Wide(Net):
    """A network with channels: linear, norm, linear."""

    compiler = None

    def __init__(self):
        super().__init__(ADAM)
        self.body = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 3)
        )
        self.example_input_array = torch.zeros(4, 6)
        if self.compiler is not None:
            self.body = torch.compile(self.body, backend=self.compiler)

    def forward(self, inputs):
        return self.body(inputs)


class Compiled(Wide):
    compiler = "eager"


def pruning(compact="end", of="channels"):
    return ChannelPruning(0.5, of=of, schedule=Table({"3it": 0.25, "10it": 0.5}), compact=compact)


def bare(module):
    return {
        strip_compile_prefix(name): tensor.clone() for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize(
    ("compact", "of"), [("end", "macs"), ("event", "channels"), ("event", "params")]
)
def test_compiled_networks_lose_the_same_channels(compact, of):
    """MACs are counted by plain names: of a compiled network too, and cut as far."""
    found = []
    for net in (Wide, Compiled):
        module, callback = net(), pruning(compact, of)
        fit(module, callback)
        found.append((bare(module), callback.plan.state_dict(), callback.history))
        assert len(found[-1][0]["body.0.weight"]) < 16
    assert equal(found[0][0], found[1][0])
    assert equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize(("first", "second"), [(Wide, Compiled), (Compiled, Wide)])
@pytest.mark.parametrize("compact", ["end", "event"])
def test_compiled_and_plain_runs_resume_and_load_each_other(first, second, compact, tmp_path):
    saved = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    whole, callback = first(), pruning(compact)
    made = fit(whole, callback, saved, enable_checkpointing=True)
    again, other = second(), pruning(compact)
    fit(again, other, ckpt_path=tmp_path / "step=8.ckpt")
    assert equal(bare(again), bare(whole))
    made.save_checkpoint(tmp_path / "small.ckpt")
    small = regrow.load(second, tmp_path / "small.ckpt")
    assert equal(bare(small), bare(whole))
    state = read(tmp_path / "step=8.ckpt")["callbacks"][callback.state_key]
    assert "_orig_mod" not in str(state)


def test_masks_of_another_pruner_follow_the_cut():
    """It is told of the cut by names, which must be its own."""
    found = []
    for net in (Wide, Compiled):
        module = net()
        weights = MagnitudePruning(0.5, schedule=Table({"1it": 0.5}), keep_removed=False)
        fit(module, weights, pruning("event"))
        found.append(bare(module))
        for name, mask in weights.masks.items():
            held = bare(module)[name]
            assert mask.shape == held.shape
            assert not held[~mask].any()
    assert equal(*found)


@pytest.mark.parametrize(("compact", "more"), [("end", 0), ("event", 2)])
def test_only_new_shapes_are_compiled(compact, more):
    """Two events that cut: two networks more; masking alone, and looking for channels: none."""
    counts = []
    for callbacks in ([], [pruning(compact)]):
        torch._dynamo.reset()
        counter = CompileCounter()
        module = Wide()
        module.body = torch.compile(module.body, backend=counter, dynamic=False)
        fit(module, *callbacks)
        counts.append(counter.frame_count)
    torch._dynamo.reset()
    assert 1 <= counts[0] <= counts[1] <= counts[0] + more
