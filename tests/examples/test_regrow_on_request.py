# SPDX-License-Identifier: MIT
"""The example's callback regrows weights of a running fit when a request file appears."""

import importlib.util
import json

import pytest
import torch
from lightning.pytorch import Callback
from tiny_fits import WEIGHTS, Net, equal, fit

from regrow import MagnitudePruning, OneShot


@pytest.fixture(scope="module")
def example(checkout):
    path = checkout / "examples" / "regrow_on_request.py"
    spec = importlib.util.spec_from_file_location("regrow_on_request", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RegrowOnRequest


class Writes(Callback):
    """Leaves a request at the end of the fifth step, and notes a parameter from then on."""

    def __init__(self, path, request):
        self.path, self.request, self.biases = path, request, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 5:
            text = self.request if isinstance(self.request, str) else json.dumps(self.request)
            self.path.write_text(text)
        if trainer.global_step >= 5:
            self.biases.append(pl_module.body[2].bias.detach().clone())


def run(example, path, request):
    """A fit that is pruned at step 2 and asked for weights after step 5."""
    module, pruning = Net(), MagnitudePruning(0.8, schedule=OneShot("2it"))
    writes = Writes(path, request)
    fit(module, writes, example(pruning, path), pruning)
    return module, pruning, writes


@pytest.mark.parametrize("by", ["random", "gradient"])
def test_a_request_regrows_weights_at_the_next_step(example, tmp_path, by):
    path = tmp_path / "regrow.json"
    request = {"fraction": 0.5, "by": by, "init": "he", "names": None, "train": "body.0"}
    _, pruning, writes = run(example, path, request)
    entry = pruning.history[-1]
    assert (entry["kind"], entry["step"], entry["by"]) == ("regrow", 5, by)
    assert entry["cause"] == "request"
    assert entry["count"] == round(0.5 * round(0.8 * WEIGHTS))
    assert not path.exists()
    assert json.loads((tmp_path / "regrow.json.done").read_text()) == request
    assert all(torch.equal(bias, writes.biases[0]) for bias in writes.biases), "train='body.0'"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("{", "Expecting property name"),
        ("[1]", "must be a mapping"),
        ({"fractoin": 0.1}, "unexpected keyword argument 'fractoin'"),
        ({}, "one of the two"),
        ({"fraction": 50}, "write 0.5 for 50 %"),
        ({"fraction": 0.1, "init": "heh"}, "did you mean"),
        ({"fraction": 0.1, "init": "original"}, "call remember_original()"),
        ({"fraction": 0.1, "by": "momentum"}, "DynamicSparseTraining"),
        ({"fraction": 0.1, "by": 3}, "a name or a callable"),
        ({"fraction": 0.1, "names": ["fc"]}, "matches no parameter"),
        ({"fraction": 0.1, "train": "fc"}, "matches no parameter"),
        ({"count": 10**6}, "cannot come back"),
        ({"count": WEIGHTS}, "cannot come back"),
    ],
)
def test_an_invalid_request_changes_nothing(example, tmp_path, request_, words):
    path, plain = tmp_path / "r.json", Net()
    with pytest.warns(UserWarning, match="is refused"):
        module, pruning, _ = run(example, path, request_)
    assert words in (tmp_path / "r.json.refused").read_text()
    assert not path.exists()
    assert [entry["kind"] for entry in pruning.history] == ["prune"]
    fit(plain, MagnitudePruning(0.8, schedule=OneShot("2it")))
    assert equal(dict(module.state_dict()), dict(plain.state_dict()))
