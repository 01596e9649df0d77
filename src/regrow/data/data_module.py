# SPDX-License-Identifier: MIT
"""ResumableDataModule: a data module for any map-style dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from regrow.data.dataset_loader import DatasetLoader, check_map_style
from regrow.data.resumable import ResumableLoader
from regrow.utils.errors import ConfigError, check_bool, check_count
from regrow.utils.lightning_classes import pl

Loader = TypeVar("Loader", bound=ResumableLoader)


class TrainingPosition:
    """The position of a training loader, saved in the state of its data module.

    Lightning 2.6 drops a loader's own state when anything asks for
    `trainer.estimated_stepping_batches` before the state is restored, as learning-rate schedules do
    (Lightning issue 20550); a data module's state is always restored.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start a fit from the beginning; Lightning restores a position afterwards."""
        self._loader: ResumableLoader | None = None
        self._state: dict[str, Any] = {}

    def track(self, loader: Loader) -> Loader:
        """Set a new training loader to the restored position, and save its position from now on."""
        self._loader = loader
        if self._state:
            loader.load_state_dict(self._state)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """The position in the training epoch; empty before there is a loader."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position, also for a training loader created later."""
        self._state = state
        if self._loader is not None:
            self._loader.load_state_dict(state)


class ResumableDataModule(pl.LightningDataModule):
    """Train on any map-style dataset, and resume from any checkpoint with the next batch.

    The order of an epoch is a function of (seed, epoch), the augmentation of a sample one of
    (seed, epoch, index), whatever the number of workers: see `DatasetLoader`. The position within
    the epoch is saved in checkpoints, also beside schedules that ask for
    `trainer.estimated_stepping_batches`. With `RandomState`, which restores dropout, a resumed fit
    is bit-exactly the uninterrupted one. Several ranks read equal parts of the same order.

    A subclass may set `train`, `val` and `test` in `setup`, after `super().setup(stage)`.

    Args:
        train: Training dataset; None: a subclass sets it.
        val: Validation dataset, read in fixed order; None: no validation.
        test: Test dataset, likewise.
        batch_size: Samples per batch and rank.
        shuffle: Whether to shuffle the training dataset each epoch.
        drop_last: Whether to drop a smaller last batch in training.
        seed: Seed of the order and of the samples.
        num_workers: Processes per rank; 0 reads in the training process.
        collate_fn: Makes a batch of a list of samples; None: torch's `default_collate`.
        **loading: Other arguments of `torch.utils.data.DataLoader`, such as `pin_memory`.

    Raises:
        ConfigError: For an invalid value, or a loader of a dataset that was not given.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> train = TensorDataset(torch.randn(100, 4), torch.arange(100) % 2)
        >>> data = ResumableDataModule(train, batch_size=32, num_workers=2, seed=1)
        >>> len(data.train_dataloader())
        4
    """

    def __init__(
        self,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **loading: Any,
    ) -> None:
        super().__init__()
        for name, dataset in (("train", train), ("val", val), ("test", test)):
            if dataset is not None:
                check_map_style(name, dataset)
        self.train, self.val, self.test = train, val, test
        self.batch_size = check_count("batch_size", batch_size)
        self.seed = check_count("seed", seed, least=0)
        self.num_workers = check_count("num_workers", num_workers, least=0)
        self.shuffle = check_bool("shuffle", shuffle)
        self.drop_last = check_bool("drop_last", drop_last)
        self.collate_fn = collate_fn
        self.loading = loading
        self._position = TrainingPosition()

    def setup(self, stage: str) -> None:
        """Forget the position of an earlier fit or evaluation."""
        if stage == "fit":
            self._position.forget()

    def train_dataloader(self) -> DatasetLoader:
        """Return the training loader, at the restored position when resuming."""
        options = {"shuffle": self.shuffle, "drop_last": self.drop_last}
        return self._position.track(self._make_loader("train", **options))

    def val_dataloader(self) -> Any:
        """Return the validation loader; no loader without a validation dataset."""
        return [] if self.val is None else self._make_loader("val")

    def test_dataloader(self) -> DatasetLoader:
        """Return the test loader."""
        return self._make_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training epoch."""
        return self._position.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position in the training epoch."""
        self._position.load_state_dict(state_dict)

    def _make_loader(self, split: str, **options: bool) -> DatasetLoader:
        dataset = getattr(self, split)
        if dataset is None:
            raise ConfigError(
                f"there is no {split} dataset: write {type(self).__name__}({split}=dataset)"
            )
        return DatasetLoader(
            dataset,
            batch_size=self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            **options,
            **self.loading,
        )
