# SPDX-License-Identifier: MIT
"""Resumed fits with loaders of other libraries equal the uninterrupted ones where possible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_loader_fits import SAMPLES, SIZE, Noise, check_equal, fit
from torch import Tensor
from torch.utils.data import DataLoader

from regrow import MagnitudePruning, RandomState

torch.set_num_threads(1)


class StatefulLoader:
    """A shuffled loader with a position, as torchdata's `StatefulDataLoader`."""

    def __init__(self) -> None:
        self.start, self.batch, self.order = 0, 0, torch.arange(SAMPLES)

    def __len__(self) -> int:
        return SAMPLES // SIZE

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self.start = self.start % len(self), 0
        if start == 0:
            self.order = torch.randperm(SAMPLES)
        for batch in range(start, len(self)):
            index = self.order[batch * SIZE : (batch + 1) * SIZE]
            self.batch = batch + 1
            yield index[:, None].expand(-1, 4) / SAMPLES, index % 2

    def state_dict(self) -> dict[str, Any]:
        return {"batch": self.batch, "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start, self.order = state["batch"], state["order"]


def plain(workers: int = 0) -> DataLoader[Any]:
    return DataLoader(Noise(), SIZE, shuffle=True, num_workers=workers)


EPOCH_ENDS = {
    "train end": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "validation end": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    "second epoch": {"every_n_epochs": 2},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("moment", EPOCH_ENDS)
def test_plain_loader_resumes_exactly_from_the_end_of_an_epoch(moment: str, tmp_path: Path) -> None:
    check_equal(tmp_path, plain, EPOCH_ENDS[moment], RandomState)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "kw",
    [
        {"one_cycle": True},
        {"max_steps": 14, "max_epochs": -1},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=str,
)
def test_plain_loader_resumes_exactly_in_other_kinds_of_fit(
    kw: dict[str, Any], tmp_path: Path
) -> None:
    check_equal(tmp_path, plain, EPOCH_ENDS["train end"], RandomState, **kw)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("steps", [5, 10])
def test_plain_loader_resumes_exactly_from_the_last_batch(steps: int, tmp_path: Path) -> None:
    """Without validation: Lightning resumes after the validation that this batch precedes."""
    check_equal(tmp_path, plain, {"every_n_train_steps": steps}, RandomState, validate=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_plain_loader_with_workers_resumes_exactly(tmp_path: Path) -> None:
    check_equal(tmp_path, lambda: plain(2), EPOCH_ENDS["train end"], RandomState)


@pytest.mark.parametrize("one_cycle", [False, True])
@pytest.mark.parametrize("steps", [3, 5, 7])
def test_stateful_loader_resumes_exactly(one_cycle: bool, steps: int, tmp_path: Path) -> None:
    """Lightning forgets the position if the schedule asks for the number of steps (#20550)."""
    save = {"every_n_train_steps": steps}
    kw = {"one_cycle": one_cycle, "validate": steps != 5}
    check_equal(tmp_path, StatefulLoader, save, RandomState, **kw)


def test_lost_generator_states_of_workers_cause_a_warning(tmp_path: Path) -> None:
    class Loader(StatefulLoader):
        num_workers = 2

    fit(tmp_path, Loader, {"every_n_train_steps": 3}, RandomState(), cut=True)
    with pytest.warns(UserWarning, match="generators of the 2 workers of Loader"):
        fit(tmp_path / "r", Loader, {}, RandomState(), resume=tmp_path / "cut.ckpt")


def test_pruning_callbacks_restore_the_loader_position(tmp_path: Path) -> None:
    save, make = {"every_n_train_steps": 7}, StatefulLoader
    fit(tmp_path, make, save, MagnitudePruning(0.5), cut=True, one_cycle=True)
    resume, kw = tmp_path / "cut.ckpt", {"one_cycle": True}
    _, rest = fit(tmp_path / "r", make, save, MagnitudePruning(0.5), resume=resume, **kw)
    saved = torch.load(resume, weights_only=True)["loops"]["fit_loop"]["state_dict"]
    order = saved["combined_loader"][0]["order"]
    assert torch.equal(rest[0][:, 0], order[2 * SIZE : 3 * SIZE] / SAMPLES)
