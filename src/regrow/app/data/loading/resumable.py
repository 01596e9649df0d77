# SPDX-License-Identifier: MIT
"""Loaders with a saved position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, distributed

from regrow.utils.errors import StateError, check_count

Batch = tuple[Tensor, Tensor]
"""Images (N, C, H, W) for the model, and labels (N,)."""


class ResumableLoader(ABC):
    """Iterates over the batches of an epoch, and can say and restore where it stands.

    A subclass gives the batches of an epoch from any position on, in `batches`, and their number,
    in `__len__`; what they hold must depend on the settings, the epoch and the position alone.

    Lightning leaves loaders that are no `DataLoader` alone, so no other sampler gets in between. It
    tells a loader's `sampler` the epoch; a plain loop calls `set_epoch` itself. After
    `load_state_dict` the next iteration goes on with the batch after the last one handed out,
    unless `set_epoch` names another epoch first. To be resumed in mid-epoch beside a learning-rate
    schedule it must come from a data module (`DataModule.state_dict` says why).

    Args:
        batch_size: Samples a batch and rank.
        seed: The run's seed.

    Raises:
        ConfigError: For a value that cannot be meant.
    """

    batch_sampler = None  # Lightning expects one beside `sampler`

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size = check_count("batch_size", batch_size)
        self.seed = check_count("seed", seed, least=0)
        self._epoch = 0
        self._batch = 0  # batches of this epoch that were handed out
        self._resume = False
        self._loaded: int | None = None  # epoch of the loaded state, until a batch is handed out
        self._skipped = 0  # epochs that were told but never happened

    @abstractmethod
    def __len__(self) -> int:
        """Batches in a whole epoch, also where a resumed one has fewer left."""

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on."""

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing below runs before the first batch is asked for, because Lightning
        # makes iterators before it tells the epoch or loads a state, and throws some away.
        start = self._batch if self._resume else 0
        self._resume = False
        for batch, pair in enumerate(self.batches(self._epoch, start), start):
            self._batch, self._loaded = batch + 1, None
            yield pair

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch comes next; naming the present one changes nothing.

        Lightning 2.6, resumed at an epoch's end with `max_steps`, counts one epoch in which it
        asks for no batch. Such an epoch is left out here, or all later ones would have another
        order than in the uninterrupted run.
        """
        epoch -= self._skipped
        if self._loaded is not None and epoch > self._epoch > self._loaded:
            self._skipped += epoch - self._epoch
        elif epoch != self._epoch:
            self._epoch, self._batch, self._resume = epoch, 0, False

    @property
    def sampler(self) -> ResumableLoader:
        """Itself: Lightning looks for `set_epoch` on a loader's sampler."""
        return self

    def identity(self) -> dict[str, int]:
        """What must be the same in the run that goes on in the middle of an epoch."""
        return {"batches": len(self), "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands: builtin numbers only."""
        position = {"epoch": self._epoch, "batch": self._batch, "skipped": self._skipped}
        return position | self.identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` stood.

        Raises:
            StateError: When the epoch was cut in its middle and was not made as this one is.
        """
        mine = self.identity()
        other = {name: value for name, value in mine.items() if state.get(name) != value}
        if state["batch"] < state["batches"] and other:
            raise StateError(
                f"the checkpoint was cut at batch {state['batch']} of an epoch of "
                f"{_described(state, mine)}; this run has {_described(mine, mine)}: resume with "
                "the same data, batch size, ranks and seed, or from a checkpoint of an epoch's end"
            )
        self._epoch, self._batch, self._resume = state["epoch"], state["batch"], True
        self._loaded, self._skipped = state["epoch"], state["skipped"]


def _described(state: dict[str, Any], names: dict[str, int]) -> str:
    """The identity in words: "4 batches with seed 0, workers 2"."""
    rest = ", ".join(f"{name} {state.get(name)}" for name in names if name != "batches")
    return f"{state['batches']} batches with {rest}"


def rank_and_world() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
