# SPDX-License-Identifier: MIT
"""`regrow auto`: attempts are runs, a stopped search goes on, and what it chooses is refused."""

import pytest
from omegaconf import OmegaConf

from regrow.app.cli.main import main
from regrow.app.launch import auto
from regrow.app.launch.hydra_app import compose_job
from regrow.io.files import read_json

QUICK = (
    "recipe=digits/gmp",  # whose own pruning is left out
    "model.width=4",
    "trainer.max_epochs=4",
    "latency.repeats=3",
    "~callbacks.progress",
    "+trainer.enable_progress_bar=false",
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_epochs_the_network_that_needs_none_is_chosen(here, capsys):
    assert main(["auto", *QUICK, "--max-drop", "20", "--epochs", "0", "--out", "found"]) == 0
    record = read_json(here / "found" / "auto.json")
    assert record["chosen"] == "free"
    assert [one["name"] for one in record["attempts"] if one["why"]] == [
        "refit",
        "gradual",
        "channels",
    ]
    found = read_json(here / "found" / "free" / "result.json")
    assert found["sparsity"] == record["attempts"][0]["sparsity"] > 0.3
    page = (here / "found" / "auto.md").read_text()
    assert "**Chosen: free**" in page
    assert page in capsys.readouterr().out


@pytest.mark.slow
def test_attempts_are_runs_and_the_page_names_the_smallest_that_holds(here, capsys, monkeypatch):
    words, done = ["auto", *QUICK, "--max-drop", "20", "--epochs", "6"], []
    whole = auto.train

    def stop_at_third(cfg, *args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(str(cfg.pruning.get("_target_")))
        return whole(cfg, *args)

    monkeypatch.setattr(auto, "train", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        main(words)
    monkeypatch.setattr(auto, "train", whole)
    assert done == ["None", "regrow.PostTrainingPruning"]
    written = {path: path.stat().st_mtime_ns for path in here.rglob("result.json")}
    assert len(written) >= 3  # dense, free, and the first refit

    assert main(words) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    [folder] = (path.parent for path in here.rglob("auto.json"))  # its name has "=" and ","
    record = read_json(folder / "auto.json")
    assert [one["name"].partition("-")[0] for one in record["attempts"]] == [
        "free", "refit", "refit", "gradual", "channels",
    ]  # fmt: skip
    assert sum(one["epochs"] for one in record["attempts"]) == 6
    for one in record["attempts"]:
        result = read_json(folder / one["name"] / "result.json")
        assert one["params"] == result["pruned"]["params"]
        assert one["test_drop"] == result["accuracy_drop"]
        assert result["dense"]["params"] == record["dense"]["params"]
        assert one["holds"] == (one["drop"] <= 0.2 + 1e-9)
        assert (folder / one["checkpoint"]).is_file()
    holding = {one["name"]: one["params"] for one in record["attempts"] if one["holds"]}
    assert record["chosen"] == min(holding, key=holding.get)
    page = (folder / "auto.md").read_text()
    assert f"**Chosen: {record['chosen']}**" in page
    assert page in capsys.readouterr().out


def test_only_channels_are_tried_for_a_latency_that_the_dense_network_exceeds(here, capsys):
    words = [*QUICK[1:], "recipe=digits/dense", "--latency", "0.001ms", "--epochs", "2"]
    assert main(["auto", *words, "--out", "found"]) == 0
    record = read_json(here / "found" / "auto.json")
    tried = {one["name"]: one["why"] for one in record["attempts"]}
    assert {name for name, why in tried.items() if "dense kernel" in why} == {
        "free", "refit", "gradual",
    }  # fmt: skip
    assert record["chosen"] is None
    assert "No network was found" in (here / "found" / "auto.md").read_text()


def test_a_start_with_signs_of_hydra_in_its_path_composes(here):
    path = here / "max_drop=1,~callbacks.progress" / "best.ckpt"
    cfg = compose_job(["recipe=digits/dense", f"start={path}"], here / "job")
    assert cfg.start == str(path)
    assert OmegaConf.load(here / "job" / ".hydra" / "config.yaml").start == str(path)


def test_a_recipe_loses_its_pruning_and_keeps_the_rest(here):
    name, words, start = auto.without_pruning(["recipe=digits/budget", "seed=3"], here)
    recipe = OmegaConf.load(words[0].removeprefix("recipe="))
    assert (name, words[1:], start) == ("digits/budget", ["seed=3"], "scratch")
    assert not {"pruning", "callbacks", "start", "dense_epochs"} & {*recipe}
    assert recipe.trainer.max_epochs == 8  # dense_epochs: those of the dense network
    assert recipe.finetune.lr == 0.02
    assert all("pruning" not in str(entry) for entry in recipe.defaults)
    assert {"override /model": "digits_cnn"} in recipe.defaults


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs one recipe"),
        (["recipe=digits/dense", "pruning=gmp"], "leave pruning=gmp out"),
        (["recipe=digits/dense", "pruning.sparsity=0.5"], "leave pruning.sparsity=0.5 out"),
        (["recipe=digits/dense", "callbacks=budget"], "leave callbacks=budget out"),
        (["recipe=digits/dnse"], "digits/dense"),
        (["recipe=digits/dense", "model=digits_cn"], "digits_cnn"),
        (["recipe=digits/dense", "--max-drop", "0.01"], "write --max-drop 1"),
        (["recipe=digits/dense", "--latency", "fast"], "--latency"),
        (["recipe=digits/dense", "--epochs", "-1"], "--epochs"),
        (["recipe=digits/dense", "--epoch", "1"], "--epochs"),
    ],
)
def test_what_is_refused(here, capsys, words, message):
    assert main(["auto", *words]) == 1
    assert message in capsys.readouterr().err
    assert not any(here.iterdir()), "a folder is left of a search that never began"
