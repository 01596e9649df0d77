# SPDX-License-Identifier: MIT
"""The ImageNet recipes on two processes: both end with the same weights, masks and shapes."""

from __future__ import annotations

from pathlib import Path

import gloo_ranks
import pytest

from regrow.app.config.recipes import recipe_files

GUARD = {"imagenet/resnet50_rigl"}
NAMES = [
    pytest.param(
        name,
        marks=[
            pytest.mark.slow,
            pytest.mark.vision,
            *([pytest.mark.guard] if name in GUARD else []),
        ],
    )
    for name in recipe_files()
    if name.startswith("imagenet/")
]
PROGRAM = """
sys.path.insert(0, {here!r})
import hashlib
from short_recipe_fits import job as compose, short_fit, tiny

torch.set_num_threads(1)
cfg = compose("recipe={name}", *tiny({name!r}, Path({data!r})))
strategy = DDPStrategy(process_group_backend="gloo")
trainer, pruning = short_fit(cfg, OUT, devices=1, num_nodes=WORLD, strategy=strategy)
state = trainer.lightning_module.network.state_dict()
weights = {{name for name, _ in trainer.lightning_module.network.named_parameters()}}
bytes_ = b"".join(state[name].numpy().tobytes() for name in sorted(weights))
said["weights"] = hashlib.sha256(bytes_).hexdigest()
said["shapes"] = [list(state[name].shape) for name in sorted(weights)]
said["sparsity"] = None if pruning is None else float(pruning.sparsity)
said["target"] = float(cfg.pruning.get("sparsity", 0))
said["steps"], said["loss"] = trainer.global_step, float(trainer.callback_metrics["val/loss"])
"""


@pytest.mark.parametrize("name", NAMES)
def test_ranks_end_with_equal_results(name: str, small_data: Path, tmp_path: Path) -> None:
    program = PROGRAM.format(
        here=str(Path(__file__).parents[1] / "helpers"), name=name, data=str(small_data)
    )
    first, second = gloo_ranks.run(program, tmp_path)
    assert first == second
    assert first["steps"] >= 1
    if first["sparsity"] is not None:
        assert first["sparsity"] == pytest.approx(first["target"], abs=0.02)
