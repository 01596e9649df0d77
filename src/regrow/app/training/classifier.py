# SPDX-License-Identifier: MIT
"""LightningModules of the command: a task around a network, and classification."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from regrow.callbacks.support.lr_rounds import restart_each_round
from regrow.utils.errors import ConfigError, check_count
from regrow.utils.lightning_classes import pl

Batch = tuple[Tensor, Tensor]


class Task(pl.LightningModule):
    """A network with the optimizer and the schedule of the configuration.

    A subclass defines the steps (`training_step`, `validation_step`, `test_step`) and what they
    log. The command calls it with the three arguments below and the other keys of `task`.

    Args:
        network: The model.
        optimizer: Called with the parameters, such as `functools.partial(SGD, lr=0.1)`.
        scheduler: A scheduler's class or a function of `(optimizer, total_steps)`, see
            `restart_each_round`; stepped after every optimizer step. None: constant learning rate.

    Example:
        >>> import torch
        >>> class Regression(Task):
        ...     def training_step(self, batch, batch_idx):
        ...         return F.mse_loss(self(batch[0]), batch[1])
        >>> Regression(nn.Linear(4, 1), torch.optim.Adam)(torch.zeros(2, 4)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterator[nn.Parameter]], Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the output of the network."""
        return self.network(*inputs, **named)

    def configure_optimizers(self) -> pl.utilities.types.OptimizerLRScheduler:
        """Return the optimizer, and the schedule over the fit or over one rewinding round.

        Raises:
            ConfigError: If there is a schedule but the length of the fit is unknown.
        """
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        scheduler = restart_each_round(self.scheduler, optimizer, self.trainer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Classifier(Task):
    """Classification with cross-entropy.

    Logs `train/loss`, `val/loss`, `val/accuracy`, `test/loss`, `test/accuracy`, and with more than
    10 classes `val/accuracy_top5` and `test/accuracy_top5`. Accuracies are fractions of all
    samples. Saves no hyper-parameters, so that checkpoints load with `weights_only=True`.

    Args:
        network: Inputs (N, ...) -> logits (N, num_classes).
        optimizer: As for `Task`.
        scheduler: As for `Task`.
        num_classes: Number of classes.
        label_smoothing: In [0, 1), in the training loss only.

    Raises:
        ConfigError: For an invalid value.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from torch.optim import SGD
        >>> model = Classifier(nn.Flatten(), partial(SGD, lr=0.1), num_classes=4)
        >>> model(torch.zeros(1, 1, 2, 2)).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterator[nn.Parameter]], Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(network, optimizer, scheduler)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(
                f"label_smoothing must be in [0, 1), got {label_smoothing}: write 0.1 for 10 %"
            )
        self.label_smoothing = label_smoothing
        metrics = _accuracies(check_count("num_classes", num_classes, least=2))
        self.val_accuracy = metrics.clone(prefix="val/")
        self.test_accuracy = metrics.clone(prefix="test/")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the validation loss and accuracy."""
        self._evaluate(batch, "val/loss", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the test loss and accuracy."""
        self._evaluate(batch, "test/loss", self.test_accuracy)

    def _evaluate(self, batch: Batch, name: str, metrics: MetricCollection) -> None:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        metrics.update(logits, labels)
        self.log(name, loss, prog_bar=True, batch_size=len(labels), sync_dist=True)
        named = {str(key): metric for key, metric in metrics.items()}
        self.log_dict(named, prog_bar=True, batch_size=len(labels))


def _accuracies(num_classes: int) -> MetricCollection:
    def accuracy(top_k: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, top_k=top_k, average="micro")

    metrics: dict[str, Any] = {"accuracy": accuracy(1)}
    if num_classes > 10:
        metrics["accuracy_top5"] = accuracy(5)
    # compute groups would merge the counts of top 1 and top 5
    return MetricCollection(metrics, compute_groups=False)
