# SPDX-License-Identifier: MIT
"""Settings and files that cannot work are refused in one line, before anything is trained."""

import json
import os
import re

import pytest
import torch

FAST = ("recipe=digits/gmp", "trainer.max_epochs=2", "latency.repeats=3")


def refused(command, message, *words):
    status, lines = command(*words)
    assert status == 1
    [line] = [line for line in lines if line.startswith("error: ")]
    assert re.search(message, line), line
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    "word",
    [
        "model._target_=nets_here.Nett", "model._target_=nets_heree.Net", "model._target_=Net",
        "model._target_=broken_nets.Net", "model._target_=3", "model._target_=null",
        "task._target_=nets_here.Nett", "optimizer._target_=torch.optim.SGDD",
        "trainer._target_=lightning.pytorch.Trainerr", "+logger._target_=nets_here.Nett",
        "+callbacks.mine._target_=nets_here.Nett",
    ],
)  # fmt: skip
def test_a_target_that_does_not_exist(command, tmp_path, word):
    (tmp_path / "nets_here.py").write_text("class Net: pass")
    (tmp_path / "broken_nets.py").write_text("class Net(: pass")
    key = word.lstrip("+").partition("=")[0].partition("._target_")[0]
    refused(command, rf"{key}\b", "train", *FAST, word)
    assert not (tmp_path / "outputs" / "digits").exists() or not [
        *(tmp_path / "outputs" / "digits").rglob("*.ckpt")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=99999999999"], r"seed must be below 2\*\*32, got 99999999999: write seed=0"),
        (["+trainer.limit_val_batches=0"], r"limit_val_batches=0 leaves nothing.*leave it out"),
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
    refused(command, message, "train", *FAST, *words)
    assert not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_made(command):
    refused(command, "hydra.run.dir=/proc/foo cannot be", "train", *FAST, "hydra.run.dir=/proc/foo")
    refused(command, "--out=/proc/foo cannot be", "auto", "recipe=digits/dense", "--max-drop", "1",
            "--out", "/proc/foo")  # fmt: skip


def test_a_search_for_several_seeds(command):
    refused(command, "seed", "auto", "recipe=digits/dense", "--max-drop", "1", "seed=0,1")


@pytest.mark.parametrize("text", ["", "\n  \n", "# nothing yet\n"])
def test_an_empty_recipe(command, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    refused(command, "the recipe mine.yaml is empty", "train", "recipe=mine.yaml", *FAST[1:])


def test_a_checkpoint_that_an_export_would_replace(command, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    before = (tmp_path / "best.ckpt").read_bytes()
    for to in ("safetensors", "onnx"):
        given = ("best.ckpt", "--to", to, "--out", f"../{tmp_path.name}/best.ckpt")
        refused(command, "is the checkpoint itself: write another file", "export", *given)
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
    refused(command, "plans nothing", "plan", *FAST, *words)
