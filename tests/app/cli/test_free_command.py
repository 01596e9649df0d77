# SPDX-License-Identifier: MIT
"""`regrow free`: the network that it writes is what it says, and can be undone."""

import pytest
import torch
from omegaconf import OmegaConf

from regrow.app.cli.main import main
from regrow.app.experiment.run import train
from regrow.app.models import DigitsCNN
from regrow.app.training.build import build_data, build_module, build_pruning
from regrow.io.checkpoints import read_checkpoint
from regrow.io.files import read_json


@pytest.fixture(scope="module")
def runs(module_job):
    """The folder of a dense run and that of a pruned one, as Hydra leaves them."""
    root, job = module_job
    folders = {}
    for name, words in (
        ("dense", ("pruning=none", "model.width=8", "trainer.max_epochs=6")),
        ("gmp", ()),
    ):
        cfg = job(f"recipe=digits/{name}", *words, folder=name)
        train(cfg)
        (root / name / ".hydra").mkdir()
        OmegaConf.save(cfg, root / name / ".hydra" / "config.yaml")
        folders[name] = root / name
    return folders


def accuracy_on_test(state):
    """By a plain loop over a plain network."""
    from regrow.app.data.digits import Digits

    network = DigitsCNN(width=8)
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items()})
    data = Digits()
    data.setup()
    images, labels = (torch.cat(t) for t in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        return (network.eval()(images).argmax(1) == labels).double().mean().item()


def test_the_written_network_is_what_the_result_says_and_undone_it_is_the_dense_one(runs, capsys):
    dense = runs["dense"] / "checkpoints" / "best.ckpt"
    assert main(["free", str(dense), "--max-drop", "3"]) == 0
    shown = capsys.readouterr().out
    folder = runs["dense"] / "free"
    result, pruned = read_json(folder / "result.json"), folder / "checkpoints" / "best.ckpt"
    assert str(pruned) in shown.replace("\n", "")
    before, after = (read_checkpoint(path)["state_dict"] for path in (dense, pruned))
    assert result["dense"]["accuracy"] == pytest.approx(accuracy_on_test(before), abs=1e-6)
    assert result["pruned"]["accuracy"] == pytest.approx(accuracy_on_test(after), abs=1e-6)
    zeros = sum(int((after[name] == 0).sum()) for name in result["layers"])
    weights = sum(after[name].numel() for name in result["layers"])
    assert result["sparsity"] == pytest.approx(zeros / weights)
    assert result["sparsity"] > 0
    assert result["free"]["before"] - result["free"]["after"] <= 0.03

    cfg = OmegaConf.load(folder / ".hydra" / "config.yaml")
    pruning, module = build_pruning(cfg), build_module(cfg, build_data(cfg), after)
    pruning.attach(module, pruned)
    pruning.unprune()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_finished_search_is_not_repeated(runs, tmp_path, capsys):
    dense, out = runs["dense"] / "checkpoints" / "best.ckpt", tmp_path / "free"
    words = ["free", str(dense), "--max-drop", "5", "--out", str(out), "--criterion", "magnitude"]
    words += ["--exclude", "features.3"]
    assert main(words) == 0
    assert "network.features.3.weight" not in read_json(out / "result.json")["layers"]
    when = (out / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    capsys.readouterr()
    assert main(words) == 0
    assert (out / "checkpoints" / "best.ckpt").stat().st_mtime_ns == when
    assert "networks that were tried" in capsys.readouterr().out


def test_a_network_that_is_pruned_already_is_refused(runs, capsys):
    assert main(["free", str(runs["gmp"] / "checkpoints" / "best.ckpt")]) == 1
    assert "pruned already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-drop", "0.005"], "write --max-drop 0.5"),
        (["--max-drop", "0"], "--max-drop 1 for one point"),
        (["--max-drop", "one"], "got 'one'"),
        (["--of", "flops"], "params"),
        (["--criterion", "sparsegpt"], "obs"),
        (["--samples", "0"], "--samples"),
        (["--max-dorp", "1"], "--max-drop"),
    ],
)
def test_options_are_checked_before_anything_runs(runs, capsys, words, message):
    assert main(["free", str(runs["dense"] / "checkpoints" / "best.ckpt"), *words]) == 1
    assert message in capsys.readouterr().err
