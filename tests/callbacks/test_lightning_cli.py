# SPDX-License-Identifier: MIT
"""The callbacks in a LightningCLI config."""

import pytest
import yaml
from tiny_fits import SGD, WEIGHTS, Net, loader, zeros

import regrow

pytest.importorskip("jsonargparse")

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 2,
}


class CliNet(Net):
    def __init__(self):
        super().__init__(SGD)


class CliData(LightningDataModule):
    def train_dataloader(self):
        return loader()

    val_dataloader = train_dataloader


def run(tmp_path, *callbacks, words=(), command="fit"):
    config = tmp_path / "config.yaml"
    content = {"trainer": {**QUIET, "callbacks": list(callbacks)}}
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    return LightningCLI(
        CliNet, CliData, args=[command, "--config", str(config), *words], save_config_callback=None
    )


def node(path, **init_args):
    return {"class_path": path} | ({"init_args": init_args} if init_args else {})


def test_callbacks_are_built_from_yaml(tmp_path):
    """Names of the package itself, which are resolved when first used."""
    cli = run(
        tmp_path,
        node("regrow.MagnitudePruning", sparsity=0.75, begin="2it", end="10it", every="4it",
             layers={"body.2": 0.5}, exclude=["*.bias"], distribution="uniform"),
        node("regrow.SparsityMonitor", layers=False),
        node("regrow.SparseEarlyStopping", monitor="val/loss", patience=9),
        node("regrow.RandomState"),
    )  # fmt: skip
    pruning = next(c for c in cli.trainer.callbacks if isinstance(c, regrow.MagnitudePruning))
    assert zeros(cli.model) == 72 + 24
    assert [entry["step"] for entry in pruning.history] == [6, 10]


@pytest.mark.parametrize("times", [{"begin": 0.125, "end": 0.5, "every": 0.125}])
def test_float_times_are_fractions_of_the_fit(times, tmp_path):
    cli = run(tmp_path, node("regrow.MagnitudePruning", sparsity=0.5, **times))
    [pruning] = [c for c in cli.trainer.callbacks if isinstance(c, regrow.MagnitudePruning)]
    assert [entry["step"] for entry in pruning.history] == [4, 6, 8]


SCHEDULES = {
    "linear": (
        node("regrow.Linear", begin=0, end="8it", every="4it"),
        0.5,
        [(4, 36), (8, 72)],
    ),
    "one shot": (node("regrow.OneShot", at="1ep"), 0.5, [(8, 72)]),
    "exponential": (
        node("regrow.Exponential", rate=0.5, every="4it", rounds=2),
        0.75,
        [(4, 72), (8, 108)],
    ),
    "exponential whose rounds say the sparsity": (
        node("regrow.Exponential", rate=0.5, every="4it", rounds=2),
        None,
        [(4, 72), (8, 108)],
    ),
    "table": (node("regrow.Table", rows={"3it": 0.25, "1ep": 0.5}), 0.5, [(3, 36), (8, 72)]),
    "cyclic": (
        node("regrow.Cyclic", begin="2it", end="10it", every="4it", last="sparse"),
        0.5,
        [(2, 72), (6, 0), (10, 72)],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_can_be_nested(name, tmp_path):
    schedule, sparsity, expected = SCHEDULES[name]
    given = {} if sparsity is None else {"sparsity": sparsity}
    cli = run(tmp_path, node("regrow.MagnitudePruning", schedule=schedule, **given))
    [pruning] = [c for c in cli.trainer.callbacks if isinstance(c, regrow.MagnitudePruning)]
    assert [(entry["step"], entry["pruned"]) for entry in pruning.history] == expected


@pytest.mark.parametrize("criterion", ["taylor", node("regrow.Movement")])
def test_criterion_may_be_a_name_or_an_object(criterion, tmp_path):
    cli = run(
        tmp_path,
        node("regrow.MagnitudePruning", sparsity=0.5, schedule="one_shot", criterion=criterion),
    )
    assert zeros(cli.model) == WEIGHTS // 2


def test_callbacks_are_set_on_the_command_line(tmp_path):
    cli = run(
        tmp_path,
        words=[
            "--trainer.callbacks=regrow.MagnitudePruning",
            "--trainer.callbacks.sparsity=0.5",
            "--trainer.callbacks.schedule=one_shot",
            "--trainer.callbacks.begin=0.25",
        ],
    )
    pruning = next(c for c in cli.trainer.callbacks if isinstance(c, regrow.MagnitudePruning))
    assert [(entry["step"], entry["pruned"]) for entry in pruning.history] == [(4, 72)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sparsity": 90}, "write 0.9 for 90 %"), ({"sparcity": 0.9}, "sparcity")],
)
def test_wrong_settings_end_with_a_message(settings, message, tmp_path, capsys):
    with pytest.raises((SystemExit, ValueError)) as caught:
        run(tmp_path, node("regrow.MagnitudePruning", **settings))
    assert message in capsys.readouterr().err + str(caught.value)


def test_printed_config_can_be_run(tmp_path, capsys):
    schedule = node("regrow.Exponential", rate=0.5, every="4it")
    pruning = node("regrow.MagnitudePruning", schedule=schedule, sparsity=0.75)
    with pytest.raises(SystemExit):
        run(tmp_path, pruning, words=["--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    cli = run(tmp_path, *printed["trainer"]["callbacks"])
    assert zeros(cli.model) == 108
