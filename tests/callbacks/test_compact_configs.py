# SPDX-License-Identifier: MIT
"""The configuration of a cut network is written next to its small checkpoint."""

import json

import lightning.pytorch as pl
import torch
from configured_model import Config, Model, make
from lightning.pytorch.callbacks import ModelCheckpoint

from regrow import ChannelPruning


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = make()[0].float()
        self.example_input_array = make()[1].float()

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def train_dataloader(self):
        return torch.utils.data.DataLoader([*torch.randn(8, 6, 5)], 2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(folder, callback):
    module, saves = Module(), ModelCheckpoint(folder, save_last=True)
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[callback, saves],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    return module


def test_written_configuration_builds_the_small_network(tmp_path):
    kw = {"distribution": "uniform", "round_to": 1, "schedule": "one_shot"}
    module = fit(tmp_path, ChannelPruning(0.5, **kw))
    config = Config(**json.loads((tmp_path / "compact-last.network.json").read_text()))
    assert (config.width, config.heads, config.inner) == (16, 2, 24)
    state = torch.load(tmp_path / "compact-last.ckpt", weights_only=True)["state_dict"]
    built = Model(config)
    built.load_state_dict({name.removeprefix("network."): v for name, v in state.items()})
    assert torch.equal(built(module.example_input_array), module(module.example_input_array))


def test_no_configuration_is_written_for_layers_that_differ(tmp_path):
    kw = {"include": ["blocks.0.up"], "round_to": 1, "schedule": "one_shot"}
    fit(tmp_path, ChannelPruning(0.5, **kw))
    assert (tmp_path / "compact-last.ckpt").exists()
    assert not [*tmp_path.glob("*.json")]
