# SPDX-License-Identifier: MIT
"""A program of a stranger: a callback on a Trainer, a Hydra app, and the command; no checkout."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel

import regrow

APP = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    print(type(hydra.utils.instantiate(cfg.pruning)).__name__, cfg.pruning.sparsity)

main()
"""


def try_callback() -> None:
    """Train the demo model of Lightning with half of its 64 weights masked."""
    model = BoringModel()
    pruning = regrow.MagnitudePruning(0.5)
    trainer = Trainer(callbacks=[pruning], max_epochs=1, accelerator="cpu", logger=False)
    trainer.fit(model)
    assert int((model.layer.weight == 0).sum()) == 32
    assert torch.equal(pruning.masks["layer.weight"], model.layer.weight != 0)


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert "site-packages" in Path(regrow.__file__).parts, regrow.__file__
        try_callback()
        app = Path(folder, "app.py")
        app.write_text(APP)
        said = run(sys.executable, str(app), "+pruning=gmp", "pruning.sparsity=0.25")
        assert said == "MagnitudePruning 0.25\n", said
        print(run("regrow", "train", "recipe=digits/gmp", "trainer.max_epochs=3",
            f"hydra.run.dir={folder}/run"))  # fmt: skip


if __name__ == "__main__":
    main()
