# SPDX-License-Identifier: MIT
"""Settings and files that cannot work are refused in one line, before anything is trained."""

import json
import os
import re

import pytest
import torch

from regrow.utils.errors import ConfigError

FAST = ("recipe=digits/gmp", "trainer.max_epochs=2", "latency.repeats=3")


def error_of(command, *words):
    """The line of the error with which a command ends."""
    status, lines = command(*words)
    assert status == 1
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    "word",
    [
        "model._target_=nets_here.Nett", "model._target_=nets_heree.Net", "model._target_=Net",
        "model._target_=broken_nets.Net", "model._target_=3", "model._target_=null",
        "task._target_=nets_here.Nett", "optimizer._target_=torch.optim.SGDD",
        "trainer._target_=lightning.pytorch.Trainerr", "logger._target_=nets_here.Nett",
        "+callbacks.mine._target_=nets_here.Nett",
    ],
)  # fmt: skip
def test_a_target_that_does_not_exist(command, tmp_path, word):
    (tmp_path / "nets_here.py").write_text("class Net: pass")
    (tmp_path / "broken_nets.py").write_text("class Net(: pass")
    key = word.lstrip("+").partition("=")[0].partition("._target_")[0]
    line = error_of(command, "train", *FAST, word)
    assert re.search(rf"\b{re.escape(key)}\b", line)
    assert not (tmp_path / "outputs" / "digits").exists() or not [
        *(tmp_path / "outputs" / "digits").rglob("*.ckpt")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=99999999999"], r"seed must be below 2\*\*32, got 99999999999: write seed=0"),
        (["+trainer.limit_val_batches=0"], r"limit_val_batches=0 leaves no batches.*leave it out"),
        (["trainer.gradient_clip_val=-1"], r"gradient_clip_val must be a number above 0, got -1"),
        (["monitor_mode=min"], "would choose the worst accuracy: write monitor_mode=max"),
        (["pruning=none", "pruning.sparsity=0.8"], "pruning.sparsity=0.8 has no effect with"),
        (["hydra.run.dir=file"], "hydra.run.dir=file cannot be a folder"),
        (["hydra.run.dir=file/below"], "hydra.run.dir=file/below cannot be a folder"),
        (["paths.controls=file"], "paths.controls=file cannot be a folder"),
        (["-m", "seed=0,1", "hydra.sweep.dir=file"], "hydra.sweep.dir=file cannot be a folder"),
    ],
)
def test_a_setting_that_cannot_work(command, tmp_path, words, message):
    (tmp_path / "file").touch()
    assert re.search(message, error_of(command, "train", *FAST, *words))
    assert not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_made(command):
    line = error_of(command, "train", *FAST, "hydra.run.dir=/proc/foo")
    assert "hydra.run.dir=/proc/foo cannot be" in line
    search = ("auto", "recipe=digits/dense", "--max-drop", "1", "--out", "/proc/foo")
    assert "--out=/proc/foo cannot be" in error_of(command, *search)


def test_folders_that_a_command_does_not_write_to(command, tmp_path):
    (tmp_path / "outputs").touch()
    status, lines = command("plan", "recipe=digits/gmp")
    assert status in (0, None), lines
    line = error_of(command, "train", *FAST)
    assert "hydra.run.dir=outputs cannot be a folder" in line
    line = error_of(command, "train", *FAST, "hydra.run.dir=run")
    assert "paths.controls=outputs/controls cannot be a folder" in line


@pytest.mark.parametrize("verb", ["train", "plan", "auto"])
def test_several_values_without_a_sweep(command, verb):
    more = ("--max-drop", "1") if verb == "auto" else ()
    line = error_of(command, verb, "recipe=digits/dense", *more, "seed=0,1")
    assert "seed=0,1 has several values: write one of them" in line
    assert ("regrow train -m" in line) == (verb == "train")


@pytest.mark.parametrize("text", ["", "\n  \n", "# nothing yet\n"])
def test_an_empty_recipe(command, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    line = error_of(command, "train", "recipe=mine.yaml", *FAST[1:])
    assert line == "error: the recipe mine.yaml is empty: write its settings into it"


def test_a_message_of_another_library_takes_one_line(command, monkeypatch, tmp_path):
    (tmp_path / "some.ckpt").touch()

    def fail(options):
        raise ConfigError("size mismatch:\n\tfirst\n\tsecond")

    monkeypatch.setattr("regrow.app.cli.export_command.export_checkpoint", lambda *_: fail(_))
    line = error_of(command, "export", "some.ckpt", "--to", "onnx")
    assert line == "error: size mismatch: first second"


def test_a_checkpoint_that_an_export_would_replace(command, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    before = (tmp_path / "best.ckpt").read_bytes()
    for to in ("safetensors", "onnx"):
        given = ("best.ckpt", "--to", to, "--out", f"../{tmp_path.name}/best.ckpt")
        assert "is the checkpoint itself: write another file" in error_of(command, "export", *given)
    assert (tmp_path / "best.ckpt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "module"])
def test_what_is_wrong_with_a_checkpoint_takes_one_line(command, tmp_path, content):
    path = tmp_path / "other.ckpt"
    if content == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    else:
        path.write_bytes(content)
    status, lines = command("inspect", "other.ckpt")
    assert status == 1
    [line] = lines
    assert re.search(r"error: other\.ckpt .*: \S", line)


def test_no_pruning_with_the_recipe_of_a_method_trains_the_dense_network(command, tmp_path):
    words = ("pruning=none", "start=scratch", "trainer.max_epochs=1")
    status, lines = command("train", *FAST, *words, "hydra.run.dir=run")
    assert status in (0, None), lines
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "pruned" not in result or result["pruned"] is None
    assert result["settings"]["pruning"] in ({}, None)
    assert "plans nothing" in error_of(command, "plan", *FAST, *words)
