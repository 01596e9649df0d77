# SPDX-License-Identifier: MIT
"""Scores against brute force, NumPy and written-out loops."""

from itertools import combinations

import numpy as np
import pytest
import torch

from regrow.calibration.scores import damped, obs, ria, sparsegpt, wanda


def sample(rows=4, features=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, features, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(features, features, generator=generator, dtype=torch.float64)
    return torch.randn(rows, features, generator=generator, dtype=torch.float64), x.T @ x


def least_loss(w, hessian, kept):
    """The least (w - v)^T H (w - v) over v that are zero outside kept, by NumPy."""
    gone = [i for i in range(len(w)) if i not in kept]
    inverse = np.linalg.inv(hessian)
    return w[gone] @ np.linalg.solve(inverse[np.ix_(gone, gone)], w[gone])


def test_obs_removes_the_weight_with_least_loss_of_all_masks_first():
    matrix, xx = sample()
    scores = obs(matrix, xx).numpy()
    hessian = damped(xx, 1e-3).numpy()
    for row, w in enumerate(matrix.numpy()):
        losses = [least_loss(w, hessian, [i for i in range(6) if i != j]) for j in range(6)]
        assert scores[row].argmin() == int(np.argmin(losses))


@pytest.mark.parametrize("zeros", [0, 1, 4, 6])  # of weights that go first
def test_obs_is_the_written_out_greedy_elimination(zeros):
    matrix, xx = sample()
    matrix[0, :zeros] = 0
    matrix[1:, 6 - zeros :: 2] = 0
    hessian = damped(xx, 1e-3).numpy()
    for row, w in enumerate(matrix.numpy()):
        left, losses, found = list(range(6)), [], np.zeros(6)
        while left:
            # the loss of removing one more from the best weights of those that are left
            before = least_loss(w, hessian, left)
            costs = [least_loss(w, hessian, [i for i in left if i != j]) - before for j in left]
            j = left[int(np.argmin(costs))]
            losses.append(min(costs))
            found[j] = max(losses)
            left.remove(j)
        assert np.allclose(obs(matrix, xx)[row].numpy(), found, rtol=1e-6, atol=1e-9)


def test_obs_finds_nearly_the_best_of_all_masks():
    matrix, xx = sample(rows=40)
    hessian, scores = damped(xx, 1e-3).numpy(), obs(matrix, xx).numpy()
    best, own, by_size = [], [], []
    for w, s in zip(matrix.numpy(), scores, strict=True):
        best.append(min(least_loss(w, hessian, kept) for kept in combinations(range(6), 3)))
        own.append(least_loss(w, hessian, s.argsort()[3:].tolist()))
        by_size.append(least_loss(w, hessian, np.abs(w).argsort()[3:].tolist()))
    assert np.median(np.divide(own, best)) < 1.0001
    assert sum(own) < 0.8 * sum(by_size)


@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_obs_does_not_depend_on_the_block(block):
    matrix, xx = sample(features=12)
    assert torch.allclose(obs(matrix, xx, block=block), obs(matrix, xx), rtol=1e-8)


def test_obs_of_wide_layers_is_exact_between_uncorrelated_parts():
    (first, a), (second, b) = sample(features=5), sample(features=5, seed=1)
    matrix, xx = torch.cat([first, second], 1), torch.block_diag(a, b)
    parts = obs(matrix, xx, 1e-12, exact=9, part=5)
    assert torch.allclose(parts, obs(matrix, xx, 1e-12))
    xx[:5, 5:] = xx[5:, :5] = 1e-3 * xx.diagonal().min()
    assert torch.equal(obs(matrix, xx, 1e-12, exact=9, part=5), parts)
    assert not torch.equal(obs(matrix, xx, 1e-12), parts)


def test_dead_inputs_are_removed_first():
    matrix, xx = sample()
    xx[2], xx[:, 2] = 0.0, 0.0
    for scores in (obs(matrix, xx), wanda(matrix, xx), ria(matrix, xx)):
        assert (scores.argmin(1) == 2).all()


def test_wanda_ranks_within_rows():
    matrix, xx = sample()
    by_hand = np.abs(matrix.numpy()) * np.sqrt(np.diag(xx.numpy()))
    assert (wanda(matrix, xx).numpy() == (by_hand.argsort(1).argsort(1) + 1) / 6).all()


def test_ria_is_its_formula():
    matrix, xx = sample()
    w = np.abs(matrix.numpy())
    relative = w / w.sum(1, keepdims=True) + w / w.sum(0, keepdims=True)
    by_hand = relative * np.diag(xx.numpy()) ** 0.25
    assert (ria(matrix, xx).numpy() == (by_hand.argsort(1).argsort(1) + 1) / 6).all()


@pytest.mark.parametrize("block", [1, 4, 128])
def test_sparsegpt_is_the_written_out_loop(block):
    matrix, xx = sample(rows=5, features=8)
    inverse = np.linalg.inv(damped(xx, 1e-2).numpy())
    upper = np.linalg.cholesky(inverse).T
    w, gone, removed = matrix.numpy().copy(), np.zeros((5, 8), bool), 0
    for start in range(0, 8, block):
        stop = min(start + block, 8)
        saliency = (w[:, start:stop] / np.diag(upper)[start:stop]) ** 2
        goal = round(0.5 * stop * 5)
        flat = saliency.flatten().argsort()[: goal - removed]
        removed = goal
        here = np.zeros(saliency.size, bool)
        here[flat] = True
        gone[:, start:stop] = here.reshape(saliency.shape)
        for j in range(start, stop):
            error = np.where(gone[:, j], w[:, j], 0) / upper[j, j]
            w[:, j:] -= np.outer(error, upper[j, j:])
    assert ((sparsegpt(matrix, xx, 0.5, block=block) < 0).numpy() == gone).all()
    assert gone.sum() == 20
