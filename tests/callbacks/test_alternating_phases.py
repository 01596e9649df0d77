# SPDX-License-Identifier: MIT
"""AC/DC compared with a manual loop: magnitude masks at each sparse phase, then zeros."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny_fits import ADAM, SGD, WEIGHTS, Net, copied, equal, fit, loader, magnitude_masks, zeros

from regrow import ACDC, AlternatingPhases, ConfigError, Cyclic, MagnitudePruning

# of 40 steps: sparse, dense, sparse, dense to the end's event, sparse
SCHEDULE = ACDC("4it", "34it", "6it")
EVENTS = {4: "S", 10: "D", 16: "S", 22: "D", 34: "S"}


def by_hand(make, reset_optimizer):
    """The weights after 40 steps, with nothing of regrow."""
    module = Net(make)
    named = {n: p for n, p in module.named_parameters() if p.dim() > 1}
    masks, optimizer = {}, make(module.parameters())
    batches = list(loader())
    for step in range(40):
        if step in EVENTS:
            if EVENTS[step] == "S":
                tensors = {n: p.detach() for n, p in named.items()}
                masks = magnitude_masks(tensors, round(0.8 * WEIGHTS))
            else:
                masks = {}
            if reset_optimizer in ("both", {"S": "sparse", "D": "dense"}[EVENTS[step]]):
                optimizer = make(module.parameters())
        _mask(named, masks, optimizer)
        optimizer.zero_grad()
        module.loss(batches[step % 8]).backward()
        for name, mask in masks.items():
            named[name].grad[~mask] = 0
        optimizer.step()
        _mask(named, masks, optimizer)
    return copied(module)


@torch.no_grad()
def _mask(named, masks, optimizer):
    for name, mask in masks.items():
        named[name].masked_fill_(~mask, 0)
        for value in optimizer.state.get(named[name], {}).values():
            if torch.is_tensor(value) and value.shape == mask.shape:
                value.masked_fill_(~mask, 0)


@pytest.mark.parametrize("make", [SGD, ADAM])
@pytest.mark.parametrize("reset_optimizer", ["never", "dense", "both"])
def test_equals_a_manual_training_loop(make, reset_optimizer):
    module, pruning = Net(make), MagnitudePruning(0.8, schedule=SCHEDULE)
    fit(module, AlternatingPhases(reset_optimizer), pruning, max_epochs=5)
    expected = by_hand(make, reset_optimizer)
    assert zeros(module) == round(0.8 * WEIGHTS)
    for name, value in expected.items():
        torch.testing.assert_close(module.state_dict()[name], value, atol=1e-6, rtol=0)
    said = {e["step"]: e["phase"][0].upper() for e in pruning.history}
    assert said == EVENTS


def test_resetting_the_optimizer_changes_the_result():
    one, other = by_hand(SGD, "never"), by_hand(SGD, "dense")
    assert max(float((one[n] - other[n]).abs().max()) for n in one) > 1e-3


def test_masks_differ_between_sparse_phases():
    module, pruning = Net(SGD), MagnitudePruning(0.8, schedule=SCHEDULE)
    seen = []

    class Masks(AlternatingPhases):
        def on_prune_event(self, trainer, pl_module, event):
            seen.append(torch.cat([m.flatten() for m in event.pruner.masks.values()]))

    fit(module, Masks(), pruning, max_epochs=5)
    first, dense, second, _, last = seen
    assert dense.all()
    assert (second & ~first).any()
    assert len(last) - int(last.sum()) == round(0.8 * WEIGHTS)


@pytest.mark.parametrize("step", [8, 16, 24, 32])
def test_resumed_fit_is_the_uninterrupted_one(tmp_path, step):
    def run(*callbacks, **kw):
        module = Net(ADAM)
        pruning = MagnitudePruning(0.8, schedule=SCHEDULE)
        fit(module, pruning, AlternatingPhases("dense"), *callbacks, max_epochs=5, **kw)
        return copied(module), pruning.history

    saves = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    whole = run(saves, enable_checkpointing=True)
    assert equal(run(ckpt_path=tmp_path / f"step={step}.ckpt"), whole)


def test_phases_are_logged_and_dense_sparse_dense_ends_dense(tmp_path):
    module = Net(SGD)
    pruning = MagnitudePruning(0.5, schedule=Cyclic("4it", "10it", "6it", last="dense"))
    fit(module, pruning, AlternatingPhases(), logger=CSVLogger(tmp_path, name="", version=""))
    assert zeros(module) == 0
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("pruning/dense")
    at = rows[0].split(",").index("step")
    found = [
        (int(r.split(",")[at]), float(r.split(",")[place])) for r in rows[1:] if r.split(",")[place]
    ]
    assert found == [(4, 0.0), (10, 1.0)]


def test_an_unknown_setting_raises():
    with pytest.raises(ConfigError, match="reset_optimizer must be one of both, dense, never"):
        AlternatingPhases("dens")


def test_events_of_a_gradual_schedule_are_no_phases():
    callback = MagnitudePruning(0.8, begin="4it", end="8it", every="1it")
    plain, other = Net(ADAM), Net(ADAM)
    fit(plain, MagnitudePruning(0.8, begin="4it", end="8it", every="1it"))
    fit(other, callback, AlternatingPhases("both"))
    assert equal(plain.state_dict(), other.state_dict())
    assert not any("phase" in entry for entry in callback.history)
