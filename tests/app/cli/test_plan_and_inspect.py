# SPDX-License-Identifier: MIT
"""`regrow plan` and `regrow inspect` show what the run does."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from regrow.app.cli.inspect_command import inspect
from regrow.app.experiment.plan import plan
from regrow.app.experiment.run import train
from regrow.runtime.sparse_layers import to_sparse
from regrow.utils.display import format_bytes
from regrow.utils.errors import ConfigError, StateError

GMP = ("recipe=digits/gmp", "pruning.every=0.1")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_plan_shows_the_events_of_the_run(job, capsys):
    plan(job(*GMP))
    shown = capsys.readouterr().out
    result = train(job(*GMP))
    assert f"{len(result['history'])} events" in shown
    for event in result["history"]:
        assert f" {event['step']} " in shown
    assert "only when included by name" in shown
    assert "14,458" in shown


def test_plan_of_erk_shows_each_layer(job, capsys):
    """By hand: the 3 x 3 x 1 convolution's share exceeds 1, and the linear layer's too."""
    plan(job(*GMP, "pruning.distribution=erk"))
    rows = [line for line in capsys.readouterr().out.splitlines() if "│ network." in line]
    shares = {line.split("│")[1].strip(): line.split("│")[5].strip() for line in rows}
    assert shares["network.features.0.weight"] == "0"
    weights = {"network.features.3.weight": 4_608, "network.features.7.weight": 9_216}
    rest = {"network.features.0.weight": 144, "network.fc.weight": 320}
    total = sum(float(shares[n]) * size for n, size in (weights | rest).items())
    assert total == pytest.approx(0.9 * 14_288, abs=2)


def test_plan_of_a_threshold_shows_thresholds(job, capsys):
    plan(job(*GMP, "pruning=threshold", "pruning.sparsity=null"))
    shown = capsys.readouterr().out
    [head] = [line for line in shown.splitlines() if "epoch" in line and "step" in line]
    assert "threshold" in head
    assert " 1.0000 " in shown, "the last threshold"
    assert "by the weights" in shown


IMP = ("recipe=digits/imp", "trainer.max_epochs=8", "pruning.schedule.every=2ep")
ADAM = ("optimizer=adam",)
ADAGRAD = (*ADAM, "optimizer._target_=torch.optim.Adagrad")


def tensor_bytes(state):
    """Of all tensors in a nest of containers."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    inner = state.values() if isinstance(state, dict) else state
    return sum(map(tensor_bytes, inner)) if isinstance(state, dict | list | tuple) else 0


@pytest.mark.parametrize(
    "words",
    [
        (),
        pytest.param(("pruning.rewind.what=[weights,optimizer]", *ADAM), marks=pytest.mark.slow),
        pytest.param(("pruning.rewind.what=lr",), marks=pytest.mark.slow),
        ("pruning.rewind.to=0it", *ADAGRAD),  # its state stands from the beginning
        pytest.param(
            (
                "pruning.rewind=null",
                "+callbacks.back={_target_:regrow.Rewind,to:20it,what:[optimizer]}",
                *ADAM,
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_plan_includes_the_memory_of_a_rewind(job, words, capsys, tmp_path):
    """Against the tensors in the checkpoint that the run writes."""
    plan(job(*IMP, *words))
    rows = [line for line in capsys.readouterr().out.splitlines() if "rewind snapshot" in line]
    train(job(*IMP, *words))
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    states = [state.get("rewind", state) for state in last["callbacks"].values()]
    [state] = [state for state in states if "memory" in state]
    expected = tensor_bytes([state["memory"], state["fresh"]])
    if expected:
        assert rows[0].split("│")[3].strip() == format_bytes(expected)
    else:
        assert not rows


def test_plan_writes_nothing_and_trains_nothing(job, tmp_path, monkeypatch):
    from regrow.app.training.classifier import Classifier

    def never(*_):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(Classifier, "training_step", never)
    plan(job(*GMP))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_plan_without_pruning_raises(job):
    with pytest.raises(ConfigError, match="pruning=none plans nothing"):
        plan(job("recipe=digits/dense"))


def test_inspect_shows_masks_progress_and_costs(job, tmp_path, capsys):
    cfg = job(*GMP)
    result = train(cfg)
    capsys.readouterr()
    inspect(tmp_path / "run" / result["checkpoint"])
    shown = capsys.readouterr().out
    events = len(result["history"])
    assert f"{events} of {events} events have happened" in shown
    assert f"sparsity {result['sparsity']:.4f} of the prunable, target 0.9000" in shown
    for name, sparsity in result["layers"].items():
        [line] = [row for row in shown.splitlines() if name in row]
        assert f"{sparsity:.4f}" in line


def test_inspect_shows_the_cost_of_a_run_with_its_configuration(job, tmp_path, capsys):
    cfg = job(*GMP)
    result = train(cfg)
    (tmp_path / "run" / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(cfg, tmp_path / "run" / ".hydra" / "config.yaml")
    capsys.readouterr()
    inspect(tmp_path / "run" / result["checkpoint"])
    shown = capsys.readouterr().out
    for name in ("params", "macs", "bytes"):
        [line] = [row for row in shown.splitlines() if f"│ {name} " in row]
        cells = [cell.strip() for cell in line.split("│")[2:4]]
        assert cells == [f"{result[network][name]:,}" for network in ("dense", "pruned")]


def test_inspect_shows_a_dense_checkpoint(tmp_path, capsys):
    torch.save({"state_dict": {"fc.weight": torch.ones(2, 3)}}, tmp_path / "dense.ckpt")
    inspect(tmp_path / "dense.ckpt")
    assert "no masks; 0 of 6 weights (0.0%) are exactly zero" in capsys.readouterr().out


def test_inspect_of_weights_without_masks_says_nothing_of_kept_ones(tmp_path, capsys):
    torch.save({"fc.weight": torch.eye(3), "fc.bias": torch.zeros(3)}, tmp_path / "weights.pt")
    inspect(tmp_path / "weights.pt")
    [heads] = [row for row in capsys.readouterr().out.splitlines() if "parameter" in row]
    assert [cell.strip() for cell in heads.split("┃")[1:-1]] == [
        "parameter",
        "shape",
        "weights",
        "zeros",
    ]


def sparse_state():
    """3 of 4 weights are zero; those of vectors and integers are not counted."""
    weight = torch.tensor([[1.0, 0.0], [-0.0, 0.0]])
    return {"fc.weight": weight, "fc.bias": torch.zeros(2), "steps": torch.zeros(2, 2).long()}


def saved_by_torch_prune():
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[9.0, 1.0], [2.0, 3.0]]))
    torch.nn.utils.prune.l1_unstructured(layer, "weight", 3)
    return {f"fc.{key}": value for key, value in layer.state_dict().items()}


@pytest.mark.parametrize(
    "saved",
    [
        lambda: sparse_state(),
        lambda: {"state_dict": sparse_state(), "epoch": 3},
        lambda: {"model": sparse_state(), "optimizer": {"state": {}}, "epoch": 3},
        lambda: {"epoch": 3, "args": {"lr": 0.1}, "model_state_dict": sparse_state()},
        lambda: {"fc.weight": sparse_state()["fc.weight"].half()},
        lambda: {"fc.weight": sparse_state()["fc.weight"].to(torch.float8_e4m3fn)},
        lambda: {"fc.weight": sparse_state()["fc.weight"].to(torch.int8)},
        lambda: {"fc.weight": 1j * sparse_state()["fc.weight"]},
        lambda: {"fc.weight": to_sparse(sparse_state()["fc.weight"])},
        lambda: {"fc.weight": sparse_state()["fc.weight"].to_sparse()},
        saved_by_torch_prune,
    ],
)
def test_inspect_counts_the_zeros_of_any_state_dict(saved, tmp_path, capsys):
    torch.save(saved(), tmp_path / "weights.pt")
    inspect(tmp_path / "weights.pt")
    shown = capsys.readouterr().out
    assert "no masks; 3 of 4 weights (75.0%) are exactly zero" in shown
    [line] = [row for row in shown.splitlines() if "fc.weight" in row]
    assert [cell.strip() for cell in line.split("│")[1:5]] == ["fc.weight", "2x2", "4", "3"]


def test_inspect_counts_the_zeros_of_safetensors(tmp_path, capsys):
    library = pytest.importorskip("safetensors.torch")
    library.save_file(sparse_state(), tmp_path / "weights.safetensors")
    inspect(tmp_path / "weights.safetensors")
    assert "no masks; 3 of 4 weights (75.0%) are exactly zero" in capsys.readouterr().out


def test_inspect_raises_for_a_file_without_weights(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "state.pt")
    with pytest.raises(StateError, match="has no tensors"):
        inspect(tmp_path / "state.pt")


def test_inspect_raises_for_a_damaged_file(tmp_path):
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(StateError, match="cannot be read as a checkpoint"):
        inspect(tmp_path / "cut.ckpt")


def test_result_file_is_plain_json(job, tmp_path):
    train(job(*GMP))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"dense", "pruned", "sparsity", "levels", "history", "verdict"} <= result.keys()
