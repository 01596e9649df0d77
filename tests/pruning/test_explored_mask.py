# SPDX-License-Identifier: MIT
"""The explored fraction, by hand."""

import torch

from regrow.pruning.drop_and_grow import ExploredMask


def masks(one, other):
    return {"a": torch.tensor(one, dtype=torch.bool), "b": torch.tensor(other, dtype=torch.bool)}


def test_explored_fraction_by_hand():
    explored = ExploredMask()
    assert explored.add(masks([[1, 0], [0, 0]], [1, 1, 0, 0, 0, 0])) == 3 / 10
    assert explored.add(masks([[1, 0], [0, 0]], [1, 0, 1, 0, 0, 0])) == 4 / 10
    assert explored.add(masks([[0, 1], [0, 0]], [0, 0, 0, 0, 0, 1])) == 6 / 10
    assert explored.add(masks([[0, 0], [0, 0]], [0, 0, 0, 0, 0, 0])) == 6 / 10


def test_given_masks_are_unchanged_and_state_round_trips():
    explored, first = ExploredMask(), masks([[1, 0], [0, 0]], [1, 0, 0])
    explored.add(first)
    explored.add(masks([[1, 1], [0, 0]], [1, 0, 0]))
    assert first["a"].tolist() == [[True, False], [False, False]]
    other = ExploredMask()
    other.load_state_dict(explored.state_dict())
    assert all(torch.equal(other.seen[name], mask) for name, mask in explored.seen.items())
    assert other.add(masks([[0, 0], [1, 1]], [0, 0, 1])) == 6 / 7
