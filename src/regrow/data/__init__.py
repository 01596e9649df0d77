# SPDX-License-Identifier: MIT
"""Data loading whose order and augmentation are the same after a resume.

Batches depend on (seed, epoch, position) alone, and the position is saved in checkpoints.
"""

from regrow.data.data_module import ResumableDataModule
from regrow.data.dataset_loader import DatasetLoader
from regrow.data.tensor_loader import BatchLoader

__all__ = ["BatchLoader", "DatasetLoader", "ResumableDataModule"]
