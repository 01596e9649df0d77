# SPDX-License-Identifier: MIT
"""What every data module offers: what its images are, three loaders, and a kept position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule

from regrow.app.data.resumable import ResumableLoader
from regrow.errors import ConfigError, check_count

Split = Literal["train", "val", "test"]


class DataModule(LightningDataModule, ABC):
    """A labelled image set: training, validation held out from it, and test.

    Checkpoints are chosen on validation; the test set is for one measurement at the end. Loaders
    give normalised float32 batches on the training device.

    Attributes:
        num_classes: How many labels there are.
        input_shape: (channels, height, width) of one image as the model gets it.
        channels_last: Whether batches lie in memory with the channels last; the model should too.

    Args:
        batch_size: Samples a batch and rank.
        seed: Of the split, of each epoch's order and of the augmentation.

    Raises:
        ConfigError: For a value that cannot be meant.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    channels_last: bool = False

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size = check_count("batch_size", batch_size)
        self.seed = check_count("seed", seed, least=0)
        self._loader: ResumableLoader | None = None
        self._position: dict[str, Any] = {}

    @abstractmethod
    def load(self) -> None:
        """Makes the splits ready; quick when asked again."""

    @abstractmethod
    def loader(self, split: Split) -> ResumableLoader:
        """A new loader: shuffled and augmented for "train", else in order and whole."""

    def setup(self, stage: str = "fit") -> None:
        """Reads and splits the data."""
        if stage == "fit":  # Lightning loads a checkpoint's position after this
            self._loader, self._position = None, {}
        self.load()

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, augmented; at the position of the checkpoint that is being resumed."""
        self.load()
        self._loader = self.loader("train")
        if self._position:
            self._loader.load_state_dict(self._position)
        return self._loader

    def val_dataloader(self) -> ResumableLoader:
        """The held-out part of the training set, in order."""
        self.load()
        return self.loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """The test set, in order."""
        self.load()
        return self.loader("test")

    def state_dict(self) -> dict[str, Any]:
        """The position in the training epoch.

        Lightning 2.6 drops a loader's own state when anything asks for
        `trainer.estimated_stepping_batches` before the state is restored, as learning-rate
        schedules do (Lightning issue 20550); a data module's state is always restored.
        """
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the position for the training loader, whether or not it was made already."""
        self._position = state_dict
        if self._loader is not None:
            self._loader.load_state_dict(state_dict)

    @property
    def device(self) -> torch.device:
        """Where the batches go: the trainer's device, or the CPU without one."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device


def check_channels(
    what: str, given: Sequence[float] | None, usual: Sequence[float], *, positive: bool = False
) -> tuple[float, ...]:
    """One number a channel; the usual ones for None.

    Args:
        what: The setting's name, for the message.
        given: From the user.
        usual: The data set's own.
        positive: Whether each must be above 0.

    Raises:
        ConfigError: For other things than numbers, too many or too few.

    Example:
        >>> check_channels("mean", None, (0.5, 0.4, 0.3))
        (0.5, 0.4, 0.3)
    """
    if given is None:
        return tuple(usual)
    try:
        values = tuple(float(value) for value in given)
    except (TypeError, ValueError):
        values = ()
    if len(values) != len(usual) or (positive and min(values) <= 0):
        kind = "numbers above 0" if positive else "numbers"
        raise ConfigError(
            f"{what} must be {len(usual)} {kind}, one a channel, for pixels in [0, 1], "
            f"got {given!r}: write {what}={list(usual)}, or null for the data set's own"
        )
    return values
