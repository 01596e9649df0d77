# SPDX-License-Identifier: MIT
"""`regrow sensitivity`: what table, CSV and plot say is what pruning a layer by hand gives."""

import csv
import importlib.util
import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from regrow import MagnitudePruning, channels
from regrow.app.cli import sensitivity_command as command
from regrow.app.cli.main import main
from regrow.app.experiment.load_run import combined_masks
from regrow.app.experiment.run import train
from regrow.app.models import DigitsCNN
from regrow.app.training.build import build_data, build_module
from regrow.io.checkpoints import KEY
from regrow.masks.masks import Masks

GMP = ("recipe=digits/gmp", "pruning.every=0.1")
LAYERS = {
    "network.features.0.weight": (144, 144 * 64),  # by hand: 8 x 8, 8 x 8 and 4 x 4 positions
    "network.features.3.weight": (4_608, 4_608 * 64),
    "network.features.7.weight": (9_216, 9_216 * 16),
    "network.fc.weight": (320, 320),
}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def configured(cfg, tmp_path):
    """A run's folder as Hydra leaves it."""
    for name in (".hydra", "checkpoints"):
        (tmp_path / "run" / name).mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, tmp_path / "run" / ".hydra" / "config.yaml")
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def untrained(job, tmp_path):
    """A checkpoint of a network as it was initialised."""
    cfg = job("recipe=digits/dense")
    path = configured(cfg, tmp_path) / "dense.ckpt"
    module = build_module(cfg, build_data(cfg))
    torch.save({"state_dict": module.state_dict()}, path)
    return path


def accuracy(state, which=slice(None)):
    """On the validation set, by a plain loop over a plain network."""
    from regrow.app.data.digits import Digits

    network = DigitsCNN()
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items()})
    network.eval()
    data = Digits()
    data.setup()
    images, labels = (torch.cat(t)[which] for t in zip(*data.val_dataloader(), strict=True))
    with torch.no_grad():
        return (network(images).argmax(1) == labels).double().mean().item()


def by_hand(state, name, sparsity):
    """The state with one layer's smallest weights at zero, by NumPy."""
    values = state[name].numpy().copy()
    order = np.argsort(np.abs(values.reshape(-1)), kind="stable")
    values.reshape(-1)[order[: round(sparsity * values.size)]] = 0
    return state | {name: torch.from_numpy(values)}


def table(path):
    with path.open(newline="") as file:
        return {line["layer"]: line for line in csv.DictReader(file)}


def run(*words):
    assert main(["sensitivity", *map(str, words)]) == 0


def test_pruned_run_is_scanned_layer_by_layer(job, tmp_path, capsys):
    cfg = job(*GMP)
    result = train(cfg)
    configured(cfg, tmp_path)
    capsys.readouterr()
    path = tmp_path / "run" / result["checkpoint"]
    run(path, "--sparsities", "0.95,0.5")
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    state = torch.load(path, weights_only=True)["state_dict"]
    state = {name: value for name, value in state.items() if name.startswith("network.")}
    found, now = table(path.parent / "sensitivity.csv"), accuracy(state)
    assert f"unchanged {100 * now:.2f}" in shown
    assert "144 validation samples" in shown
    assert "no test data" in shown
    assert [*found] == [*LAYERS]
    for name, (size, macs) in LAYERS.items():
        line = found[name]
        assert int(line["weights"]) == size
        assert float(line["share_of_params"]) == size / 14_458
        assert float(line["share_of_macs"]) == macs / sum(m for _, m in LAYERS.values())
        assert float(line["accuracy_now"]) == now
        assert float(line["sparsity_now"]) == pytest.approx(result["layers"][name])
        for sparsity in (0.5, 0.95):
            right = now
            if sparsity > result["layers"][name]:
                right = accuracy(by_hand(state, name, sparsity))
            assert float(line[f"accuracy_at_{sparsity}"]) == right
    assert any(result["layers"][name] >= 0.5 for name in LAYERS)
    page = (path.parent / "sensitivity.html").read_text()
    assert all(name in page for name in LAYERS)
    assert '"showSendToCloud": false' in page
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="http', page)


def test_network_with_cut_channels_is_scanned(job, tmp_path, capsys):
    cfg = job(*GMP)
    module = build_module(cfg, build_data(cfg))
    plan = channels.prune(module, torch.randn(2, 1, 8, 8), 0.5)
    path = configured(cfg, tmp_path) / "small.ckpt"
    torch.save({"state_dict": module.state_dict(), KEY: plan.state_dict()}, path)
    small = module.network.eval()
    run(path, "--sparsities=0.5")
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "sparsities are of the remaining ones" in shown
    found = table(path.parent / "sensitivity.csv")
    assert int(found["network.fc.weight"]["weights"]) == small.fc.weight.numel() < 320
    images, labels = (torch.cat(t) for t in zip(*build_data(cfg).val_dataloader(), strict=True))
    name = "features.3.weight"
    small.load_state_dict(by_hand(dict(small.state_dict()), name, 0.5))
    with torch.no_grad():
        right = (small(images).argmax(1) == labels).double().mean().item()
    assert float(found[f"network.{name}"]["accuracy_at_0.5"]) == right


def test_channels_of_a_group_are_zeroed_in_every_member(untrained, capsys):
    run(untrained, "--by", "channels", "--sparsities", "0.5", "--criterion", "l1")
    assert "ranked by l1" in capsys.readouterr().out
    found = table(untrained.with_name("sensitivity_channels.csv"))
    assert [*found] == ["network.features.0", "network.features.3", "network.features.7"]
    state = torch.load(untrained, weights_only=True)["state_dict"]
    # the last group by hand: rows, norm, and the columns that read them after pooling
    rows = state["network.features.7.weight"].abs().sum((1, 2, 3))
    columns = state["network.fc.weight"].abs().sum(0)
    gone = (rows + columns).argsort(stable=True)[:16]
    state["network.features.7.weight"][gone] = 0
    state["network.features.8.weight"][gone] = 0
    state["network.features.8.bias"][gone] = 0
    state["network.fc.weight"][:, gone] = 0
    state = {name: value for name, value in state.items() if name.startswith("network.")}
    line = found["network.features.7"]
    assert float(line["accuracy_at_0.5"]) == accuracy(state)
    assert (line["channels"], line["weights_held"]) == ("32", str(9_216 + 64 + 320))


def test_printed_next_step_is_a_valid_command(untrained, capsys, job):
    """One layer of three is sensitive: the words are those of the command."""
    state = torch.load(untrained, weights_only=True)
    with torch.no_grad():
        state["state_dict"]["network.fc.weight"][:, 1:] *= 1e-4  # nothing to lose there
    torch.save(state, untrained)
    run(untrained, "--max-drop", "0.05", "--sparsities", "0.1,0.6")
    shown = capsys.readouterr().out
    words = re.findall(r"'(pruning\.\w+=[^']*)'", shown)
    assert words, shown
    cfg = job("recipe=digits/gmp", *words)
    [line] = [line for line in shown.splitlines() if "MagnitudePruning(" in line]
    callback = eval(line.strip(), {"MagnitudePruning": MagnitudePruning})
    assert callback.config.layers == dict(cfg.pruning.layers)
    assert list(callback.config.exclude or []) == list(cfg.pruning.exclude or [])
    assert cfg.pruning.layers["network.fc.weight"] == 0.6
    build_module(cfg, build_data(cfg))


def test_options_reach_the_scan(untrained, tmp_path, capsys):
    words = ("--samples", 50, "--exclude", "@first,fc", "--out", tmp_path / "made" / "here")
    run(untrained, *words, "--criterion", "taylor", "--max-drop", "0.1")
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "50 validation samples, of which one is 2 points" in shown
    assert "too few samples to resolve 0.1 points" in shown
    assert (
        "ranked by taylor within each layer; gradients are those of 1,024 training samples" in shown
    )
    found = table(tmp_path / "made" / "here" / "sensitivity.csv")
    assert [*found] == ["network.features.3.weight", "network.features.7.weight"]
    assert not (untrained.parent / "sensitivity.csv").exists()


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn", "taylor", "fpgm", "random"])
def test_each_criterion_of_channels_can_be_scanned(untrained, capsys, criterion):
    run(untrained, "--by", "channels", "--criterion", criterion, "--sparsities", "0.5")
    assert f"ranked by {criterion} within each" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_a_criterion_of_many_steps_is_refused(untrained, capsys):
    words = ["sensitivity", str(untrained), "--by", "channels", "--criterion", "fisher"]
    assert main(words) == 1
    assert "write --criterion taylor" in capsys.readouterr().err


def test_the_test_set_is_never_read(untrained, monkeypatch):
    from regrow.app.data.base import ImageDataModule

    def never(self):
        raise AssertionError("the test set was asked for")

    monkeypatch.setattr(ImageDataModule, "test_dataloader", never)
    run(untrained, "--sparsities", "0.5")
    assert len(table(untrained.with_name("sensitivity.csv"))) == 4  # and validation was


@pytest.mark.parametrize("missing", [("plotly",), ("plotly", "matplotlib")])
def test_missing_plot_libraries_leave_the_table_and_a_hint(untrained, monkeypatch, capsys, missing):
    there = importlib.util.find_spec
    if "matplotlib" not in missing and there("matplotlib") is None:
        missing = (*missing, "matplotlib")

    def find(name, *more):
        return None if name in missing else there(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    run(untrained, "--sparsities", "0.5")
    shown = capsys.readouterr().out
    assert untrained.with_name("sensitivity.csv").is_file()
    assert not untrained.with_name("sensitivity.html").exists()
    if "matplotlib" in missing:
        assert 'pip install "regrow[report]"' in shown
    else:
        picture = untrained.with_name("sensitivity.svg").read_text()
        assert picture.rstrip().endswith("</svg>")
        assert "sensitivity.svg" in shown


def test_masks_of_all_pruners_are_respected():
    one = Masks({"a": torch.tensor([True, True, False]), "b": torch.tensor([False])})
    two = Masks({"a": torch.tensor([True, False, True])})
    held = {
        str(number): {"pruner": {"masks": masks.pack()}} for number, masks in enumerate((one, two))
    }
    found = combined_masks({"callbacks": held | {"other": {"pruner": 3}, "more": 1}})
    assert found is not None
    assert found["a"].tolist() == [True, False, False]
    assert found["b"].tolist() == [False]
    assert combined_masks({"callbacks": {}}) is combined_masks({}) is None


def assert_command_raises(capsys, message, *words):
    assert main(["sensitivity", *map(str, words)]) == 1
    assert message in capsys.readouterr().err


def test_wrong_options_and_checkpoints_are_errors(untrained, tmp_path, capsys, monkeypatch):
    assert_command_raises(capsys, "did you mean 'magnitude'", untrained, "--criterion", "magnitud")
    assert_command_raises(
        capsys, "collects its scores in training", untrained, "--criterion", "movement"
    )
    assert_command_raises(
        capsys, "--criterion must be one of bn,", untrained, "--by=channels", "--criterion=snip"
    )
    assert_command_raises(capsys, "matches no parameter", untrained, "--include", "conv9")
    (tmp_path / "file").touch()
    assert_command_raises(capsys, "cannot be a folder", untrained, "--out", tmp_path / "file")
    lone = tmp_path / "lone.ckpt"
    torch.save({"state_dict": {}}, lone)
    assert_command_raises(capsys, "in Python, regrow.sensitivity(model, evaluate)", lone)
    torch.save({"weights": 1}, untrained)
    assert_command_raises(capsys, "has no state_dict", untrained)
    untrained.write_bytes(b"PK\x03\x04")
    assert_command_raises(capsys, "cannot be read as a checkpoint", untrained)
    assert not list(untrained.parent.glob("sensitivity*"))


def test_the_device_of_the_run_is_used():
    cfg = OmegaConf.create({"trainer": {"accelerator": "cpu"}})
    assert command._choose_device(cfg).type == "cpu"
    cfg.trainer.accelerator = "auto"
    assert (command._choose_device(cfg).type == "cuda") == torch.cuda.is_available()


def test_help_lists_the_command(capsys):
    main(["--help"])
    assert "sensitivity  prune one layer at a time" in capsys.readouterr().out
