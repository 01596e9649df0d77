# SPDX-License-Identifier: MIT
"""A UNet, a ViT and a detector are pruned in a fit; another process loads the small file."""

import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import task_modules
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from regrow import ChannelPruning
from regrow.callbacks.support.compact_checkpoints import compact_path

pytestmark = pytest.mark.vision

LOADS = """
import sys, torch, task_modules
from regrow import load
small = load(getattr(task_modules, sys.argv[1]), sys.argv[2])
torch.save(task_modules.dense_outputs(small), sys.argv[3])
print(sum(p.numel() for p in small.parameters()))
"""


@pytest.mark.parametrize("name", ["Segmentation", "Classification", "Detection"])
def test_another_process_loads_the_small_file_of_a_fit(tmp_path, name):
    make = getattr(task_modules, name)
    module, dense = make(), sum(p.numel() for p in make().parameters())
    saves = ModelCheckpoint(tmp_path, save_last=True, filename="last-of-fit")
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[ChannelPruning(0.4, of="macs", schedule="one_shot", keep_removed=False), saves],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    path, out = compact_path(saves.last_model_path), tmp_path / "outputs.pt"
    arguments = [sys.executable, "-c", LOADS, name, str(path), str(out)]
    folders = [str(Path(task_modules.__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    ran = subprocess.run(arguments, capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == sum(p.numel() for p in module.parameters()) < 0.8 * dense
    found, expected = torch.load(out), task_modules.dense_outputs(module)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
