# SPDX-License-Identifier: MIT
"""Slimming: each penalty's gradient, on losses that do not depend on what is penalised."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regrow import ChannelPruning, Slimming
from regrow.utils.errors import ConfigError


class Still(pl.LightningModule):
    """A loss that does not depend on the scales: the penalty alone moves them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.other = norm, nn.Parameter(torch.ones(()))

    def training_step(self, batch, _):
        return self.norm(batch[0]).sum() * 0 + self.other.square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(module: pl.LightningModule, *callbacks: pl.Callback, size: int = 8, **settings) -> None:
    data = DataLoader(TensorDataset(torch.randn(size, 3)), batch_size=4)
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[*(callbacks or [Slimming(0.1)])],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, data)


def test_scales_shrink_by_rate_times_weight_each_step():
    module = Still(nn.BatchNorm1d(3))
    with torch.no_grad():
        module.norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
    fit(module)
    # two steps of 0.5 * 0.1 towards zero; what is zero stays
    assert torch.allclose(module.norm.weight, torch.tensor([0.9, -1.9, 0.0]))


def test_module_without_norms_raises():
    with pytest.raises(ConfigError, match="has none"):
        fit(Still(nn.Linear(3, 3)))


class Network(Still):
    """Two layers of which five channels can be cut, without biases; the loss is constant."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False))
        )
        generator = torch.Generator().manual_seed(0)
        for layer in (self.norm[0], self.norm[2]):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator)

    def forward(self, x):
        return self.norm(x)

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        return tuple(self.norm[i].weight.detach().double().numpy().copy() for i in (0, 2))


class Weights(pl.Callback):
    """Keeps the weights at the start of the last step, before channels are masked in it."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.last = module.weights()


def pruning(**settings) -> ChannelPruning:
    times = {"schedule": "one_shot", "compact": None} | settings
    return ChannelPruning(0.4, round_to=1, example_input=torch.zeros(2, 3), **times)


def test_group_penalty_shrinks_weak_channels_faster():
    module = Network()
    rows, columns = module.weights()
    watch = Weights()
    fit(module, watch, Slimming(0.01, penalty="group"), pruning(begin="2it"), size=12)
    for _ in range(2):  # steps of rate 0.5
        norms = (rows**2).sum(1) + (columns**2).sum(0)
        factors = 2 ** (4 * (norms.max() - norms) / (norms.max() - norms.min()))
        shrunk = 1 - 0.5 * 0.01 * factors
        rows, columns = shrunk[:, None] * rows, shrunk * columns
    np.testing.assert_allclose(watch.last[0], rows, rtol=1e-5)
    np.testing.assert_allclose(watch.last[1], columns, rtol=1e-5)


def test_growing_penalty_acts_on_the_channels_that_would_be_removed():
    module = Network()
    rows, columns = module.weights()
    least = np.argsort((rows**2).sum(1) + (columns**2).sum(0))[:2]
    slimming = Slimming(0.1, penalty="growing", ceiling=0.25)
    watch = Weights()
    fit(module, watch, slimming, pruning(begin="4it"), size=20)
    shrunk = (1 - 0.5 * 0.1) * (1 - 0.5 * 0.2) * (1 - 0.5 * 0.25) * (1 - 0.5 * 0.25)
    rows[least] *= shrunk
    columns[:, least] *= shrunk
    np.testing.assert_allclose(watch.last[0], rows, rtol=1e-5)
    np.testing.assert_allclose(watch.last[1], columns, rtol=1e-5)
    assert slimming.chosen["norm.0"].tolist() == sorted(least.tolist())
    again = Slimming(0.1, penalty="growing", ceiling=0.25)
    again.load_state_dict(slimming.state_dict())
    assert again.steps == 5
    assert torch.equal(again.chosen["norm.0"], slimming.chosen["norm.0"])


def test_penalty_on_groups_goes_on_after_a_cut():
    module = Network()
    slimming = Slimming(0.01, penalty="group")
    fit(module, slimming, pruning(compact="event", begin="1it"), size=16)
    assert module.norm[0].out_features == 3


@pytest.mark.parametrize(
    ("slimming", "others", "message"),
    [
        (Slimming(penalty="group"), [], r"has 0 of it: add ChannelPruning\(0.5\)"),
        (Slimming(penalty="growing"), ["taylor"], "'taylor' has no data yet: write criterion='l1'"),
    ],
)
def test_penalty_on_groups_without_what_it_needs_raises(slimming, others, message):
    with pytest.raises(ConfigError, match=message):
        fit(Network(), slimming, *(pruning(criterion=name) for name in others))
    with pytest.raises(ConfigError, match="penalty must be one of group, growing, scales"):
        Slimming(penalty="lasso")


def test_another_fit_starts_its_growing_penalty_anew():
    """Of another network too: its own channels shrink, by a penalty that starts at the bottom."""
    settings = {"penalty": "growing", "ceiling": 0.25}
    used = Slimming(0.1, **settings)
    fit(Network(), used, pruning(begin="4it"), size=20)
    ends = []
    for slimming in (used, Slimming(0.1, **settings)):
        module, watch = Network(), Weights()
        for i in (0, 2):
            module.norm[i].weight.data *= torch.tensor([1.0, 4.0, 1.0, 4.0, 1.0]).view(
                (-1, 1) if i == 0 else (1, -1)
            )
        fit(module, watch, slimming, pruning(begin="2it"), size=12)
        ends.append((slimming.steps, slimming.chosen["norm.0"].tolist(), watch.last))
    assert ends[0][:2] == ends[1][:2]
    for i in (0, 1):
        np.testing.assert_array_equal(ends[0][2][i], ends[1][2][i])


def test_resumed_growing_penalty_is_the_uninterrupted_one(tmp_path):
    def run(ckpt_path=None):
        saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        module, slimming = Network(), Slimming(0.1, penalty="growing", ceiling=0.35)
        loader = DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=4)
        trainer = pl.Trainer(
            max_epochs=3,
            callbacks=[slimming, pruning(begin="5it"), saves],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader, ckpt_path=ckpt_path)
        return slimming.steps, module.weights()

    steps, whole = run()
    assert steps == 6
    for cut in (2, 4):
        again, resumed = run(tmp_path / f"step={cut}.ckpt")
        assert again == 6
        for mine, theirs in zip(whole, resumed, strict=True):
            np.testing.assert_array_equal(mine, theirs)
