# SPDX-License-Identifier: MIT
"""Masks loaded with weights of another step, another network or another callback."""

import pytest
import torch
from interrupted_fits import Save, run
from tiny_fits import Net, copied, equal, fit, loader, read, trainer, weights
from torch import nn

from regrow import ChannelPruning, MagnitudePruning, Pruner, StateError, Table

ALL = Table({"2it": 0.5})


def saved(path, *callbacks):
    """A checkpoint at the end of a short fit, and what is in it."""
    fit(Net(), *callbacks, max_epochs=1).save_checkpoint(path)
    return read(path)


def changed(path, change):
    """The checkpoint with other weights: `change(name, weight)` for each."""
    checkpoint = read(path)
    state = checkpoint["state_dict"]
    for name in state:
        state[name] = change(name, state[name])
    torch.save(checkpoint, path)
    return path


def alive(name, weight):
    """Set a pruned weight of the last layer to a nonzero value."""
    if name == "body.2.weight":
        place = (weight == 0).nonzero()[0]
        weight[tuple(place)] = 1e-30
    return weight


def minus(name, weight):
    return torch.where(weight == 0, -0.0, weight) if name == "body.2.weight" else weight


def nan(name, weight):
    return torch.where(weight == 0, torch.nan, weight) if name == "body.2.weight" else weight


@pytest.mark.parametrize("change", [alive, minus, nan])
@pytest.mark.parametrize("stage", ["fit", "test", "attach"])
def test_nonzero_pruned_weight_raises_with_the_name(stage, change, tmp_path):
    path = tmp_path / "a.ckpt"
    saved(path, MagnitudePruning(0.5, schedule=ALL))
    changed(path, change)
    module, pruning = Net(), MagnitudePruning(0.5, schedule=ALL)
    made = trainer(pruning)
    act = {
        "fit": lambda: made.fit(module, loader(), ckpt_path=path),
        "test": lambda: made.test(module, loader(), ckpt_path=path, verbose=False),
        "attach": lambda: pruning.attach(module, path),
    }[stage]
    with pytest.raises(StateError, match=r"weights of body\.2\.weight are not zero where its mask"):
        act()
    assert module.trained == 0


SETS = {
    "soft": lambda: [MagnitudePruning(0.5, schedule=ALL, soft=True)],
    "two": lambda: [
        MagnitudePruning(0.5, schedule=ALL, include=["0"]),
        MagnitudePruning(0.75, schedule=Table({"1it": 0.75}), include=["2"]),
    ],
    "not kept": lambda: [MagnitudePruning(0.5, schedule=ALL, keep_removed=False)],
    "nothing pruned yet": lambda: [MagnitudePruning(0.5, schedule=Table({"12it": 0.5}))],
}


@pytest.mark.parametrize("kind", SETS)
def test_saved_state_resumes_exactly(kind, tmp_path):
    """Dense values of soft masks do not count as nonzero pruned weights."""
    whole = run(tmp_path / "end.ckpt", *SETS[kind](), Save(tmp_path / "cut.ckpt", 5))
    again = run(tmp_path / "end.ckpt", *SETS[kind](), ckpt_path=tmp_path / "cut.ckpt")
    assert equal(whole, again)


def test_attach_applies_masks_to_other_weights(tmp_path):
    """Masks and weights of the file match; the model's own weights may be any."""
    saved(tmp_path / "a.ckpt", MagnitudePruning(0.5, schedule=ALL))
    module, pruning = Net(seed=5), MagnitudePruning(0.5, schedule=ALL)
    before = {name: w.clone() for name, w in weights(module).items()}
    pruning.attach(module, tmp_path / "a.ckpt")
    for name, mask in pruning.masks.items():
        assert torch.equal(weights(module)[name], torch.where(mask, before[name], 0.0))


class Wider(Net):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))


class Named(Net):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.Linear(6, 16)), nn.Tanh(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Wider, r"body\.0\.weight is \(20, 6\), its mask \(16, 6\)"),
        (Named, r"body\.0\.0\.weight has no mask; body\.0\.weight is masked but not selected here"),
    ],
)
def test_masks_of_another_network_raise_with_the_names(kind, words, tmp_path):
    saved(tmp_path / "a.ckpt", MagnitudePruning(0.5, schedule=ALL))
    module, pruning = kind(), MagnitudePruning(0.5, schedule=ALL)
    before = copied(module)
    with pytest.raises(StateError, match=words):
        pruning.attach(module, tmp_path / "a.ckpt")
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    with pytest.raises(StateError, match=words):
        Pruner(module, keep_removed=True).load_state_dict(
            next(iter(read(tmp_path / "a.ckpt")["callbacks"].values()))["pruner"]
        )


def test_masks_of_another_callback_raise_with_the_names(tmp_path):
    saved(tmp_path / "a.ckpt", MagnitudePruning(0.5, schedule=ALL))
    other = ChannelPruning(0.5, example_input=torch.zeros(2, 6))
    with pytest.raises(StateError, match=r"no masks of ChannelPruning.*MagnitudePruning"):
        fit(Net(), other, ckpt_path=tmp_path / "a.ckpt")
