# SPDX-License-Identifier: MIT
"""Block-Fisher scores against NumPy, their state, and a fit that prunes by them."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from tiny_fits import Net, samples, trainer

from regrow import BlockFisher, MagnitudePruning, Movement
from regrow.data import ResumableDataModule
from regrow.utils.errors import ConfigError, StateError


def by_hand(w, gradients, block, damping, decay):
    """w_j^2 / [F^-1]_jj of each block, with normalised weights decay^age."""
    ages = decay ** np.arange(len(gradients))[::-1]
    found = np.zeros(w.size)
    for start in range(0, w.size, block):
        part = slice(start, min(start + block, w.size))
        kept = w.ravel()[part] != 0
        fisher = damping * np.eye(kept.size)
        for age, g in zip(ages / ages.sum(), gradients, strict=True):
            g = g.ravel()[part] * kept
            fisher += age * np.outer(g, g)
        found[part] = w.ravel()[part] ** 2 / np.diag(np.linalg.inv(fisher))
    return found.reshape(w.shape)


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_the_scores_are_their_formula(block, decay):
    rng = np.random.default_rng(0)
    w, gradients = rng.normal(size=(5, 6)), rng.normal(size=(12, 5, 6))
    w[1, 2] = w[4, 0] = 0.0  # pruned
    fisher = BlockFisher(block, damping=0.1, decay=decay)
    for g in gradients:
        fisher.update("w", torch.from_numpy(w), torch.from_numpy(g))
    scores = fisher.scores("w", torch.from_numpy(w))
    assert np.allclose(scores, by_hand(w, gradients, block, 0.1, decay), rtol=1e-4)
    again = BlockFisher(block, damping=0.1, decay=decay)
    again.load_state_dict(fisher.state_dict())
    assert torch.equal(again.scores("w", torch.from_numpy(w)), scores)


def test_a_weight_that_others_replace_has_a_low_score():
    fisher = BlockFisher(block=3, damping=1e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        a, b = torch.randn(2, generator=generator)
        fisher.update("w", torch.ones(3), torch.stack([a, a, b]))
    scores = fisher.scores("w", torch.ones(3))
    assert scores[0] == pytest.approx(float(scores[1]), rel=1e-3)
    assert scores[0] < 0.01 * scores[2]


@pytest.mark.parametrize("given", [{"block": 0}, {"damping": 0}, {"decay": 1}])
def test_invalid_settings(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        BlockFisher(**given)


def test_scores_need_gradients():
    with pytest.raises(StateError, match="has seen no gradient of w"):
        BlockFisher().scores("w", torch.ones(2))


class SaveAt(Callback):
    def __init__(self, step, file):
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


def test_a_resumed_fit_equals_the_uninterrupted_one(tmp_path):
    def pruning():
        return MagnitudePruning(0.8, criterion="block_fisher", begin=0.2, every="3it")

    def data():
        return ResumableDataModule(samples(), batch_size=4, seed=3)

    whole, one, file = Net(), pruning(), tmp_path / "a.ckpt"
    trainer(one, SaveAt(7, file)).fit(whole, data())
    resumed, two = Net(), pruning()
    torch.load(file, weights_only=True)  # as Lightning does, from 2.6 on, if asked to
    trainer(two).fit(resumed, data(), ckpt_path=str(file))
    assert one.sparsity == pytest.approx(0.8, abs=1 / 144)
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    assert one.history == two.history


@pytest.mark.parametrize("make", [Movement, BlockFisher])
def test_sums_of_a_checkpoint_follow_the_weights_to_their_device(make):
    """A checkpoint is loaded to the CPU; "meta" stands for an accelerator."""
    criterion, resumed = make(), make()
    criterion.update("w", torch.ones(4), torch.ones(4))
    resumed.load_state_dict(criterion.state_dict())
    resumed.update("w", torch.ones(4, device="meta"), torch.ones(4, device="meta"))
    assert resumed.state_dict()["w"].device.type == "meta"


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_few_steps_and_large_gradients_follow_the_formula_too(size, steps):
    """With the defaults, where F has the rank of the steps and a damping of 1e-6."""
    rng = np.random.default_rng(0)
    weight, fisher, mean = rng.normal(size=(4, 50)), BlockFisher(), np.zeros((4, 50, 50))
    for _ in range(steps):
        g = (size * rng.normal(size=(4, 50))).astype(np.float32).astype(float)
        fisher.update("w", torch.tensor(weight), torch.tensor(g).float())
        mean = 0.99 * mean + 0.01 * g[:, :, None] * g[:, None, :]
    inverse = np.linalg.inv(mean / (1 - 0.99**steps) + 1e-6 * np.eye(50))
    expected = weight**2 / np.diagonal(inverse, axis1=1, axis2=2)
    found = fisher.scores("w", torch.tensor(weight))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_damping_that_rounding_swallows_is_refused():
    fisher = BlockFisher(damping=1e-30)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        fisher.update("w", torch.ones(4, 50), torch.randn(4, 50, generator=generator))
    with pytest.raises(StateError, match=r"damping=1e-30 is lost .* of w.*BlockFisher\(damping="):
        fisher.scores("w", torch.ones(4, 50))
