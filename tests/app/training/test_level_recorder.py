# SPDX-License-Identifier: MIT
"""A level has the validated values by one name, however the module logs them."""

from types import SimpleNamespace

import pytest
import torch

from regrow.app.training.fit import LevelRecorder


@pytest.mark.parametrize(
    ("monitor", "logged", "name"),
    [
        ("val/accuracy", {"val/accuracy": 0.75}, "val_accuracy"),
        ("val_accuracy", {"val_accuracy": 0.75}, "val_accuracy"),
        ("val/accuracy/dataloader_idx_0", {"val/accuracy/dataloader_idx_0": 0.75}, "val_accuracy"),
        ("val_loss", {"val_loss": 0.75, "val/accuracy": 0.5}, "val_loss"),
    ],
)
def test_the_monitored_value_is_stored_by_the_name_of_its_metric(tmp_path, monitor, logged, name):
    recorder = LevelRecorder(SimpleNamespace(sparsity=0.5), tmp_path, monitor, "max")
    trainer = SimpleNamespace(
        sanity_checking=False,
        callback_metrics={key: torch.tensor(value) for key, value in logged.items()},
        current_epoch=3,
        is_global_zero=False,  # writes no file
    )
    recorder.on_validation_end(trainer, None)
    expected = {"sparsity": 0.5, "monitored": 0.75, "epoch": 3, name: 0.75}
    if "val/accuracy" in logged:
        expected["val_accuracy"] = logged["val/accuracy"]
    assert recorder.levels == [expected]
