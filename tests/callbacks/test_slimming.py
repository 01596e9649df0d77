# SPDX-License-Identifier: MIT
"""Network Slimming: the penalty's subgradient on norms' scales."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regrow import Slimming
from regrow.utils.errors import ConfigError


class Still(pl.LightningModule):
    """A loss that does not depend on the scales: the penalty alone moves them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.other = norm, nn.Parameter(torch.ones(()))

    def training_step(self, batch, _):
        return self.norm(batch[0]).sum() * 0 + self.other.square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(module: pl.LightningModule, **settings) -> None:
    data = DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4)
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[Slimming(0.1)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, data)


def test_scales_shrink_by_rate_times_weight_each_step():
    module = Still(nn.BatchNorm1d(3))
    with torch.no_grad():
        module.norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
    fit(module)
    # two steps of 0.5 * 0.1 towards zero; what is zero stays
    assert torch.allclose(module.norm.weight, torch.tensor([0.9, -1.9, 0.0]))


def test_module_without_norms_raises():
    with pytest.raises(ConfigError, match="has none"):
        fit(Still(nn.Linear(3, 3)))
