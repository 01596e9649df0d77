# SPDX-License-Identifier: MIT
"""docs/how_to/your_own.md: its files and commands, run as they are printed."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from regrow.app.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how_to" / "your_own.md"
QUICK = [
    *("latency.repeats=3", "~callbacks.progress", "+trainer.enable_progress_bar=false"),
    *("trainer.accelerator=cpu", "logger=none"),
]


def blocks(language):
    """The code blocks of the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def command(word):
    """The arguments of the page's command that contains a word."""
    [found] = [block for block in blocks("sh") if word in block]
    return shlex.split(found.replace("\\\n", " "))[1:]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's files, in which commands are started."""
    for block in (*blocks("python"), *blocks("yaml")):
        (tmp_path / block.partition("\n")[0].removeprefix("# ")).write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if name.startswith(("my_", "mnist")):
            del sys.modules[name]


def run(*words, epochs=2):
    """The result of `regrow WORDS...`."""
    assert main([*words, f"trainer.max_epochs={epochs}", "pruning.every=0.1", *QUICK]) == 0
    [file] = [f for f in Path("outputs").rglob("result.json") if "controls" not in f.parts]
    return json.loads(file.read_text())


def test_own_model_is_trained_for_classification(folder):
    result = run(*command("my_model.Net model.width"))
    assert result["dense"]["params"] == 65 * 64 + 65 * 10
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert result["metric"] == "accuracy"
    # arguments of the default model are not passed
    assert result["settings"]["model"] == {"_target_": "my_model.Net", "width": 64}
    assert [*result["settings"]["code"]] == ["my_model.py"]


def test_own_datasets_are_trained_on(folder):
    result = run(*command("data.train.noise"), epochs=4)
    assert result["split"] == "test"
    assert result["dense"]["accuracy"] > 0.7
    assert result["dense"]["params"] == 3 * 32 + 33 * 3


def test_labels_that_are_no_classes_of_the_model(folder, capsys):
    words = [
        word.replace("model.classes=3", "model.classes=2") for word in command("data.train.noise")
    ]
    assert "model.classes=2" in words
    with pytest.raises(SystemExit, match="1"):
        run(*words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"error: a label .* no class of model my_model\.Net: .*2.*count.*from 0", error
    )
    assert not [*folder.rglob("*.ckpt")]


def test_without_a_test_set_the_validation_set_is_measured_and_named(folder, capsys):
    words = [word for word in command("data.train.noise") if "data.test" not in word]
    result = run(*words)
    assert result["split"] == "val"
    assert "on the validation set" in result["verdict"]
    assert result["dense"]["accuracy"] * 150 == pytest.approx(
        round(result["dense"]["accuracy"] * 150), abs=1e-4
    )


def test_own_lightning_module_is_trained_as_itself(folder):
    result = run(*command("my_module.Regression"))
    assert (result["metric"], result["metric_mode"], result["split"]) == ("mse", "min", "test")
    assert "accuracy" not in result["dense"]
    assert result["lr"] == 0.02  # its own, not that of optimizer=
    assert result["dense"]["params"] == 3 * 32 + 33
    assert result["accuracy_drop"] == result["pruned"]["mse"] - result["dense"]["mse"]
    assert {*result["levels"][-1]} >= {"monitored", "test_mse"}
    [last] = folder.glob("outputs/custom/*/*/checkpoints/last.ckpt")
    saved = torch.load(last, weights_only=True)
    assert "exp_avg" in saved["optimizer_states"][0]["state"][0]  # its own Adam
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.02
    assert {*saved["state_dict"]} == {f"net.{n}.{p}" for n in (0, 2) for p in ("weight", "bias")}
    assert saved["hyper_parameters"] == {"width": 32, "lr": 0.02}


def test_own_lightning_module_and_data_are_pruned_without_training(folder):
    words = [word for word in command("my_module.Regression") if "pruning" not in word]
    settings = ["pruning=obs", "start=null", "dense_epochs=1", "trainer.max_epochs=0"]
    words = [word for word in words if not word.startswith("start")]
    assert main([*words, *settings, *QUICK]) == 0
    [file] = [f for f in Path("outputs").rglob("result.json") if "controls" not in f.parts]
    assert json.loads(file.read_text())["sparsity"] == pytest.approx(0.8, abs=1e-2)


SEVERAL = """
import lightning.pytorch as pl

import my_module


class PointsData(my_module.PointsData):
    def val_dataloader(self):
        return [super().val_dataloader(), self.train_dataloader()]


class Regression(my_module.Regression):
    def validation_step(self, batch, batch_idx, dataloader_idx):
        self.log("val_mse", self.loss(batch))
"""


def test_the_monitored_one_of_several_validation_loaders_is_compared_with_the_test_metric(folder):
    (folder / "my_several.py").write_text(SEVERAL)
    words = [word.replace("my_module", "my_several") for word in command("my_module.Regression")]
    words[words.index("monitor=val_mse")] = "monitor=val_mse/dataloader_idx_0"
    result = run(*words)
    assert (result["metric"], result["split"]) == ("mse", "test")
    assert result["accuracy_drop"] == result["pruned"]["mse"] - result["dense"]["mse"]


ODD = """
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import my_data
import my_module


class NotANumber(my_module.Regression):
    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)
        self.log("test_recall", torch.tensor(float("nan")))


class Forces(my_module.Regression):
    def loss(self, batch):
        with torch.enable_grad():
            points = batch[0].clone().requires_grad_()
            torch.autograd.grad(self(points).sum(), points)
        return super().loss(batch)


class Late(my_module.Regression):
    def __init__(self, lr=0.01):
        pl.LightningModule.__init__(self)
        self.save_hyperparameters({"lr": lr})
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))


class Stream(IterableDataset):
    def __iter__(self):
        points = my_data.Points(300)
        yield from (points[i] for i in range(300))


class Streamed(my_module.PointsData):
    def train_dataloader(self):
        return DataLoader(Stream(), 32)
"""


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("NotANumber", []),
        ("Forces", ["+trainer.inference_mode=false"]),
        ("Late", []),
        (
            "Regression",
            [
                *("data._target_=my_odd.Streamed", "trainer.max_epochs=-1"),
                *("+trainer.max_steps=20", "pruning.every=5it"),
            ],
        ),
    ],
)
def test_unusual_modules_and_data(folder, name, more):
    (folder / "my_odd.py").write_text(ODD + "\nRegression = my_module.Regression\n")
    words = [
        word.replace("my_module.Regression", f"my_odd.{name}")
        for word in command("my_module.Regression")
    ]
    given = {word.lstrip("+").partition("=")[0] for word in more}
    words = [word for word in words if word.partition("=")[0] not in given]
    usual = ("trainer.max_epochs=2", "pruning.every=0.1")
    usual = [word for word in usual if word.partition("=")[0] not in given]
    assert main([*words, *more, *usual, *QUICK]) == 0
    [file] = [f for f in Path("outputs").rglob("result.json") if "controls" not in f.parts]
    result = json.loads(file.read_text())
    assert result["sparsity"] == pytest.approx(0.9, abs=0.02)
    if name == "NotANumber":
        assert result["pruned"]["recall"] is None


DICTS = """
import torch
from torch.utils.data import DataLoader, default_collate

import my_module


def named(rows):
    points, labels = default_collate(rows)
    return {"label": labels, "points": points}


class PointsData(my_module.PointsData):
    def train_dataloader(self):
        return DataLoader(self.train, 64, shuffle=True, collate_fn=named)

    def val_dataloader(self):
        return DataLoader(self.val, 64, collate_fn=named)

    def test_dataloader(self):
        return DataLoader(self.test, 64, collate_fn=named)


class Regression(my_module.Regression):
    def __init__(self, width=32, lr=0.01):
        super().__init__(width, lr)
        self.example_input_array = torch.zeros(1, 2)

    def loss(self, batch):
        return super().loss((batch["points"], batch["label"]))
"""


def test_batches_that_are_dicts_are_trained_on_and_exported(folder, capsys):
    (folder / "my_dicts.py").write_text(DICTS)
    words = [word.replace("my_module", "my_dicts") for word in command("my_module.Regression")]
    run(*words)
    [best] = folder.glob("outputs/custom/*/*/checkpoints/best.ckpt")
    assert main(["export", str(best), "--to", "onnx", "--int8"]) in (0, None)
    assert "weights in int8" in capsys.readouterr().out
    for form in ([], ["--sparse", "--values", "int8"]):
        assert main(["export", str(best), "--to", "safetensors", *form]) in (0, None)
    assert best.with_suffix(".safetensors").is_file()


def test_own_task_uses_the_commands_optimizer_and_its_own_metric(folder):
    result = run(*command("my_task"))
    assert result["metric"] == "f1"
    assert {"f1", "loss"} <= {*result["pruned"]}
    [last] = folder.glob("outputs/custom/*/*/checkpoints/last.ckpt")
    saved = torch.load(last, weights_only=True)
    assert "momentum_buffer" in saved["optimizer_states"][0]["state"][0]


def test_own_recipe_is_a_file(folder):
    result = run(*command("my_recipe.yaml"))
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-2)
    assert {*result["settings"]["model"]} == {"_target_", "inputs", "classes"}
    assert {*result["settings"]["code"]} == {"my_model.py", "my_data.py"}
    # all of the data counts, and is in the recipe that repeats the run
    assert result["settings"]["data"]["train"]["count"] == 600
    [written] = folder.glob("outputs/my_recipe*/*/*/recipe.yaml")
    assert yaml.safe_load(written.read_text())["data"]["train"]["count"] == 600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=0.1"], r"optimizer\.lr=0\.1 has no effect: .* is a LightningModule"),
        (["finetune.lr=0.1", "start=null"], r"finetune\.lr=0\.1 has no effect"),
        (
            ["monitor=val_mae"],
            r"monitor=val_mae is not logged in validation by Regression: did you",
        ),
        (["model.depth=3"], "model could not be created .*unexpected keyword argument 'depth'"),
        (["data._target_=my_data.Points", "data.count=9"], "write data=datasets"),
        (["+trainer.callbacks=[]"], r"trainer\.callbacks has no effect: write \+callbacks"),
        (["+trainer.check_val_every_n_epoch=3", "trainer.max_epochs=5"], r"max_epochs=6"),
        (["data.width=3"], "data could not be created .*unexpected keyword argument 'width'"),
        (["model._target_=my_module.Nothing"], "Nothing"),
    ],
)
def test_mistakes_are_named_before_training(folder, words, message, capsys):
    given = [word.partition("=")[0] for word in words]
    kept = [word for word in command("my_module.Regression") if word.partition("=")[0] not in given]
    with pytest.raises(SystemExit):
        main([*kept, *words, *QUICK])
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not [*folder.rglob("*.ckpt")]


def test_a_target_inherits_nothing_from_options_and_recipes(folder, capsys):
    words = ["data._target_=my_module.PointsData", "+model.width=9", "model._target_=my_model.Net"]
    main(["train", "recipe=cifar10/resnet20_gmp", *words, "--cfg", "job"])
    cfg = yaml.safe_load(capsys.readouterr().out)
    assert cfg["data"] == {"_target_": "my_module.PointsData"}
    assert cfg["model"] == {"_target_": "my_model.Net", "width": 9}
    assert cfg["trainer"]["max_epochs"] > 100  # of the recipe
    main(["train", "model=digits_cnn", "model._target_=my_model.Net", "--cfg", "job"])
    assert {*yaml.safe_load(capsys.readouterr().out)["model"]} > {"_target_", "width"}


@pytest.mark.slow
def test_the_files_of_packages_and_methods_are_part_of_the_settings(folder):
    (folder / "net").mkdir()
    (folder / "net" / "__init__.py").write_text("from my_model import Net\n")
    (folder / "my_points.py").write_text(
        "import my_data\n\n\nclass Points(my_data.Points):\n"
        "    @classmethod\n    def make(cls, count):\n        return cls(count)\n"
    )
    words = [word for word in command("data.train.noise") if "model" not in word]
    words = [word for word in words if "noise" not in word and "data.train" not in word]
    more = ["data.train._target_=my_points.Points.make", "data.train.count=600"]
    model = ["model._target_=net.Net", "model.inputs=2", "model.classes=3"]
    result = run(*words, *more, *model)
    assert {*result["settings"]["code"]} == {"net/__init__.py", "my_points.py", "my_data.py"}


@pytest.mark.slow
def test_a_sweep_of_an_own_model_may_begin_with_its_option(folder):
    words = ["-m", "recipe=digits/gmp", "model._target_=my_model.Net", "seed=0,1"]
    assert main(["train", *words, "trainer.max_epochs=1", "pruning.every=0.25", *QUICK]) in (
        0,
        None,
    )
    results = [f for f in Path("outputs").rglob("result.json") if "controls" not in f.parts]
    assert len(results) == 2


def test_an_edited_file_is_another_run(folder):
    words = [*command("my_recipe.yaml"), "trainer.max_epochs=1", "pruning.every=0.5", *QUICK]
    assert main(words) == 0
    file = folder / "my_data.py"
    file.write_text(file.read_text() + "# edited\n")
    with pytest.raises(SystemExit):
        main(words)  # the folder has a run with other settings
    assert main([*words, "force=true"]) == 0
    assert len([*folder.glob("outputs/controls/*/result.json")]) == 2


def test_an_error_in_a_modules_own_step_ends_the_run(folder):
    file = folder / "my_module.py"
    step = "        return self.loss(batch)\n"
    file.write_text(file.read_text().replace(step, "        raise OSError('no disk')\n", 1))
    with pytest.raises(SystemExit):
        main([*command("my_module.Regression"), "trainer.max_epochs=1", *QUICK])
    assert not [*folder.rglob("result.json")]
