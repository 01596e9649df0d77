# SPDX-License-Identifier: MIT
"""Low-rank adapters beside frozen weights, and weights that two layers share."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import (
    ADAM,
    BATCHES,
    SGD,
    Net,
    copied,
    equal,
    fit,
    loader,
    magnitude_masks,
    read,
    samples,
)
from torch import nn
from torch.nn.utils import parametrize

from regrow import ConfigError, MagnitudePruning, OneShot, Table
from regrow.data.tensor_loader import BatchLoader

LEVELS = Table({"3it": 0.5, "11it": 0.8})


def data():
    return BatchLoader(*samples().tensors, batch_size=4)


class LoRA(nn.Module):
    """W + B A, where W is frozen."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / 3)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


class Adapted(Net):
    def __init__(self, make=ADAM):
        super().__init__(make)
        self.body[0], self.body[2] = LoRA(self.body[0]), LoRA(self.body[2])

    def configure_optimizers(self):
        return self.make([p for p in self.parameters() if p.requires_grad])


BASES = ["body.0.base.weight", "body.2.base.weight"]


def test_frozen_weights_are_pruned_while_adapters_train():
    module, pruning = Adapted(), MagnitudePruning(0.8, schedule=LEVELS)
    start = copied(module)
    fit(module, pruning)
    assert list(pruning.masks) == BASES
    masks = magnitude_masks({name: start[name] for name in BASES}, 115)
    assert equal(masks, dict(pruning.masks))
    now = copied(module)
    for name in BASES:
        assert torch.equal(now[name], torch.where(masks[name], start[name], 0))
    for name in ("body.0.a", "body.0.b", "body.2.a", "body.2.b"):
        assert not torch.equal(now[name], start[name])
        assert now[name].all(), "nothing else is zero"
    pruning.unprune()
    assert equal({name: copied(module)[name] for name in BASES}, {n: start[n] for n in BASES})


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "movement"])
def test_adapters_are_pruned_if_included_by_name(criterion):
    module = Adapted(SGD)
    start = copied(module)
    pruning = MagnitudePruning(
        0.5, schedule=OneShot("4it"), include=["*.a", "*.b"], criterion=criterion
    )
    fit(module, pruning)
    assert sorted(pruning.masks) == ["body.0.a", "body.0.b", "body.2.a", "body.2.b"]
    sizes = {name: p.numel() for name, p in module.named_parameters() if name in pruning.masks}
    now = copied(module)
    assert sum(int((now[name] == 0).sum()) for name in sizes) == sum(sizes.values()) // 2
    for name in BASES:
        assert torch.equal(now[name], start[name])


def test_gradient_criterion_on_frozen_weights_raises():
    module = Adapted()
    with pytest.raises(ConfigError, match="frozen layers"):
        fit(module, MagnitudePruning(0.5, schedule=OneShot("4it"), criterion="taylor"))
    assert module.trained == 0


def test_resumed_run_is_the_uninterrupted_run(tmp_path):
    def run(*callbacks, **kw):
        module = Adapted()
        both = [
            MagnitudePruning(0.8, schedule=LEVELS),
            MagnitudePruning(0.5, schedule=OneShot("6it"), include=["*.a", "*.b"]),
        ]
        fit(module, *both, *callbacks, data=data(), **kw)
        return copied(module), [dict(one.masks) for one in both]

    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(saves, enable_checkpointing=True)
    for step in (2, 5, BATCHES, 12):
        assert equal(whole, run(ckpt_path=tmp_path / f"step={step}.ckpt")), step


class LowRank(nn.Module):
    def __init__(self, rows, columns):
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, columns) / 3)
        self.b = nn.Parameter(torch.zeros(rows, 2))

    def forward(self, weight):
        return weight + self.b @ self.a


class Parametrized(Net):
    """The adapter as a parametrization of the layer itself."""

    def __init__(self):
        super().__init__(ADAM)
        parametrize.register_parametrization(self.body[0], "weight", LowRank(16, 6))
        self.body[0].parametrizations.weight.original.requires_grad_(False)


def test_a_parametrized_layer_is_left_dense_and_the_others_are_pruned():
    module, pruning = Parametrized(), MagnitudePruning(0.5, schedule=OneShot(0))
    keys = list(module.state_dict())
    fit(module, pruning)
    assert list(pruning.masks) == ["body.2.weight"]
    assert int((module.body[2].weight == 0).sum()) == 24
    assert module.body[0].weight.all()
    assert list(module.state_dict()) == keys


class Tied(Net):
    """An embedding whose weights decode too; its tokens are 3, the classes 16."""

    def __init__(self, make=ADAM):
        super().__init__(make)
        self.embedding, self.decoder = nn.Embedding(16, 6), nn.Linear(6, 16, bias=False)
        self.decoder.weight = self.embedding.weight

    def loss(self, batch):
        hidden = self.embedding(batch[1]) + self.body(batch[0]).repeat(1, 2)
        return nn.functional.cross_entropy(self.decoder(hidden), batch[1])


@pytest.mark.parametrize("name", ["embedding.weight", "decoder.weight"])
def test_tied_weights_are_counted_once_and_pruned_in_both_places(name, tmp_path):
    def run(*callbacks, **kw):
        module = Tied()
        pruning = MagnitudePruning(0.75, schedule=Table({"3it": 0.25, "11it": 0.75}), include=name)
        fit(module, pruning, *callbacks, data=data(), val=loader(), **kw)
        assert len(pruning.masks) == 1
        assert pruning.masks.total == 96
        assert module.decoder.weight is module.embedding.weight
        assert int((module.embedding.weight == 0).sum()) == 72
        return copied(module), dict(pruning.masks)

    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(saves, enable_checkpointing=True)
    for step in (2, 6, BATCHES, 12):
        path = tmp_path / f"step={step}.ckpt"
        assert equal(whole, run(ckpt_path=path)), step
        state = read(path)["state_dict"]
        assert torch.equal(state["embedding.weight"], state["decoder.weight"])
        assert int((state["decoder.weight"] == 0).sum()) == {2: 0, 6: 24, 8: 24, 12: 72}[step]


def test_tied_weights_have_one_set_of_moments_and_summed_gradients():
    """By hand: the gradient of a shared weight is that of both uses, masked once."""
    module, plain = Tied(SGD), Tied(SGD)
    pruning = MagnitudePruning(0.5, schedule=OneShot(0), include="embedding.weight")
    fit(module, pruning, data=data(), max_epochs=1)
    shared, optimizer = plain.embedding.weight, SGD(plain.parameters())
    start = {"w": shared.detach().clone()}
    kept = magnitude_masks(start, 48)["w"]
    with torch.no_grad():
        shared[~kept] = 0
    for batch in data():
        optimizer.zero_grad()
        plain.loss(batch).backward()
        shared.grad[~kept] = 0
        optimizer.step()
    assert equal(copied(module), copied(plain))
