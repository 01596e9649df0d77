# SPDX-License-Identifier: MIT
"""The refit against numpy.linalg.lstsq."""

import numpy as np
import pytest
import torch

from regrow.calibration.moments import Moments
from regrow.calibration.refit import refit_matrix, refit_rows


def sample(rows=200, features=10, out=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64) + 1
    y = torch.randn(rows, out, generator=generator, dtype=torch.float64) + x[:, :out] - 2
    w = torch.randn(out, features, generator=generator, dtype=torch.float64)
    return x, y, w, torch.rand(out, features, generator=generator) < 0.5


@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
def test_each_row_is_a_least_squares_solution(damping):
    x, y, w, mask = sample()
    mask[0], mask[1] = False, True
    found = refit_rows(w, mask, x.T @ x, x.T @ y, damping).numpy()
    ridge = damping * float((x * x).sum(0).mean())
    for row in range(len(w)):
        kept = mask[row].numpy()
        # ridge towards the present weights as more equations
        more = np.sqrt(ridge) * np.eye(kept.sum())
        a = np.vstack([x.numpy()[:, kept], more])
        b = np.concatenate([y.numpy()[:, row], np.sqrt(ridge) * w.numpy()[row, kept]])
        assert np.allclose(found[row, kept], np.linalg.lstsq(a, b, rcond=None)[0])
        assert not found[row, ~kept].any()


def test_a_bias_is_fitted_with_the_weights():
    x, y, w, mask = sample()
    moments = Moments()
    for rows in range(0, 200, 50):  # in batches
        moments.add(x[None, rows : rows + 50], y[None, rows : rows + 50])
    matrix, bias = refit_matrix(w[None], mask[None], moments, True, 0.0)
    for row in range(len(w)):
        kept = mask[row].numpy()
        a = np.hstack([x.numpy()[:, kept], np.ones((200, 1))])
        solution = np.linalg.lstsq(a, y.numpy()[:, row], rcond=None)[0]
        assert np.allclose(matrix[0, row].numpy()[kept], solution[:-1])
        assert np.allclose(bias[0, row], solution[-1])


def test_dependent_inputs_have_a_solution_of_least_error():
    x, y, w, _ = sample()
    x[:, 3] = x[:, 2]
    mask = torch.ones_like(w, dtype=torch.bool)
    found = refit_rows(w, mask, x.T @ x, x.T @ y, 0.0).numpy()
    for row in range(len(w)):
        best = np.linalg.lstsq(x.numpy(), y.numpy()[:, row], rcond=None)[0]
        error = np.linalg.norm(x.numpy() @ found[row] - y.numpy()[:, row])
        assert error <= np.linalg.norm(x.numpy() @ best - y.numpy()[:, row]) * (1 + 1e-6)


def test_moments_of_half_precision_are_summed_in_double():
    x = torch.full((1, 4000, 1), 0.1, dtype=torch.float16)
    moments = Moments()
    moments.add(x, None)
    assert moments.xx.item() == pytest.approx(4000 * float(x[0, 0, 0]) ** 2, rel=1e-12)


def test_sums_of_ranks_add_up():
    x, y, _, _ = sample()
    whole, ranks = Moments(), [Moments(), Moments()]
    whole.add(x[None], y[None])
    for rank, rows in zip(ranks, (slice(0, 80), slice(80, 200)), strict=True):
        rank.add(x[None, rows], y[None, rows])
    # in the order in which `reduce` asks for them: rows, xx, x, xy, y
    other = ranks[1]
    sums = iter([torch.tensor(other.rows), other.xx, other.x, other.xy, other.y])
    ranks[0].reduce(lambda values: values + next(sums))
    for name in ("xx", "x", "xy", "y"):
        assert torch.allclose(getattr(ranks[0], name), getattr(whole, name))
    assert ranks[0].rows == 200
