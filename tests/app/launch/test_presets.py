# SPDX-License-Identifier: MIT
"""The presets of the group `sweep`: their jobs, and runs of a few of them."""

import json

import pytest
from hydra.core.hydra_config import HydraConfig

from regrow.app.data.fashion_mnist import DEBIAN
from regrow.app.launch.hydra_app import launch
from regrow.utils.paths import config_dir

LENET = [
    f"fashion_mnist/lenet300_{name}"
    for name in ("gmp", "imp", "lr_rewind", "oneshot_finetune", "rigl", "random")
]


@pytest.fixture
def jobs(sweep, reports, monkeypatch):
    """Composes every job of a sweep and runs none: the recipe and configuration of each."""

    def listed(*words):
        seen = []

        def train(cfg):
            seen.append((HydraConfig.get().runtime.choices["recipe"], cfg))
            return {}

        with monkeypatch.context() as patch:
            patch.setattr("regrow.app.experiment.run.train", train)
            assert sweep(*words) == 0
        return seen

    return listed


def test_ladder_halves_the_remaining_weights(jobs):
    seen = jobs("sweep=ladder", "recipe=digits/gmp")
    assert [cfg.pruning.sparsity for _, cfg in seen] == [1 - 0.5**k for k in range(1, 6)]


@pytest.mark.slow
def test_methods_are_compared_over_seeds(jobs):
    seen = jobs("sweep=methods", "pruning.sparsity=0.95", "seed=1")
    assert [(name, cfg.seed) for name, cfg in seen] == [(name, 1) for name in LENET]
    assert {cfg.pruning.sparsity for _, cfg in seen} == {0.95}
    assert "seed: 0,1,2" in (config_dir("conf") / "app/sweep/methods.yaml").read_text()


@pytest.mark.slow
def test_every_method_is_compared(jobs):
    """All recipes of the network but for controls and variants of one method."""
    recipes = config_dir("recipes") / "fashion_mnist"
    names = {path.stem.removeprefix("lenet300_") for path in recipes.glob("lenet300_*.yaml")}
    left = {"dense", "budget", "imp_init", "random_ticket", "reinit_control", "weights_only"}
    left |= {"obs"}  # does not train after pruning
    left |= {name for name in names if name.startswith("oneshot")} - {"oneshot_finetune"}
    seen = jobs("sweep=compare", "pruning.sparsity=0.98", "seed=0")
    compared = [name.removeprefix("fashion_mnist/lenet300_") for name, _ in seen]
    assert len(compared) == len({*compared})
    assert {*compared} == names - left
    assert {cfg.pruning.sparsity for _, cfg in seen} == {0.98}


@pytest.mark.slow
def test_finetune_preset_is_a_grid(jobs):
    seen = jobs("sweep=finetune", "recipe=digits/oneshot")
    pairs = [(cfg.finetune.lr, cfg.finetune.batch_size) for _, cfg in seen]
    assert pairs == [(lr, size) for lr in (0.001, 0.003, 0.01, 0.03) for size in (32, 128)]


@pytest.mark.slow
def test_preset_sweeps_without_the_multirun_flag(sweep, reports, tiny, monkeypatch):
    seeds = []
    monkeypatch.setattr("regrow.app.experiment.run.train", lambda cfg: seeds.append(cfg.seed))
    launch("train", [*tiny, "sweep=seeds", "recipe=digits/gmp"])
    assert seeds == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("varied", ["recipe=digits/gmp,digits/imp", "pruning=gmp,erk"])
def test_setting_of_a_swept_group_may_be_given_once(jobs, varied):
    """Hydra alone would look for it in the pruning that no job has."""
    seen = jobs(varied, "pruning.sparsity=0.9", "pruning.exclude=[a,b]", "finetune.lr=1e-3")
    found = {(cfg.pruning.sparsity, *cfg.pruning.exclude, cfg.finetune.lr) for _, cfg in seen}
    assert found == {(0.9, "a", "b", 0.001)}
    assert len(seen) == 2


def test_command_line_overrides_a_preset(jobs):
    seen = jobs("sweep=methods", "recipe=digits/gmp,digits/imp", "seed=7")
    assert [(name, cfg.seed) for name, cfg in seen] == [("digits/gmp", 7), ("digits/imp", 7)]
    [(_, cfg)] = jobs("sweep=ladder", "recipe=digits/gmp", "pruning.sparsity=0.3")
    assert cfg.pruning.sparsity == 0.3


@pytest.mark.parametrize(
    ("words", "key", "values"),
    [
        (("sweep=ladder", "recipe=digits/gmp"), "pruning.sparsity", "0.5,0.96875"),
        (("sweep=finetune", "recipe=digits/oneshot", "dense_epochs=1"), "finetune.lr", "0.003"),
        (("sweep=seeds", "recipe=digits/gmp"), "seed", "4"),
    ],
)
def test_preset_jobs_run(sweep, found, reports, words, key, values):
    narrow = [f"{key}={values}"]
    if key == "finetune.lr":
        narrow.append("finetune.batch_size=128")
    assert sweep(*words, *narrow) == 0
    group, _, name = key.rpartition(".")
    settings = [result["settings"] for result in found("result.json").values()]
    got = {(s[group] if group else s)[name] for s in settings}
    assert got == {json.loads(value) for value in values.split(",")}


@pytest.mark.slow
@pytest.mark.vision
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_every_method_of_the_compare_preset_runs(sweep, reports, tiny, tmp_path):
    """All 16 epochs, of ten batches each: RigL moves weights every 100 steps."""
    few = ("+trainer.limit_train_batches=10", "+trainer.limit_val_batches=2")
    own = [word for word in tiny if not word.startswith("trainer.max_epochs")]
    launch("train", [*own, *few, "sweep=methods", "seed=0", "pruning.sparsity=0.9"])
    results = [
        json.loads(path.read_text())
        for path in (tmp_path / "outputs" / "fashion_mnist").rglob("result.json")
    ]
    assert {result["recipe"] for result in results} == {*LENET}
    assert all(result["epochs"] == 16 for result in results)
