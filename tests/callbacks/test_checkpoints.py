# SPDX-License-Identifier: MIT
"""Contents of checkpoints, and checkpoints that raise an error."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import (
    ADAM,
    WEIGHTS,
    Events,
    Net,
    copied,
    equal,
    fit,
    loader,
    prune_at_start,
    read,
    trainer,
    zeros,
)
from torch import nn, optim

from regrow import Exponential, MagnitudePruning, Masks, OneShot, RandomState, StateError, Table
from regrow.io.integrity import with_digest

KEY = "MagnitudePruning{'include': None, 'exclude': None}"
LEVELS = Table({"3it": 0.4, "11it": 0.8})


def one_shot(**kw):
    return MagnitudePruning(0.8, schedule=OneShot("3it"), **kw)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of the end of a fit with masks; and a way to change it."""

    def make(*callbacks, change=None, module=None, **kw):
        made = fit(module or Net(ADAM), *(callbacks or [one_shot()]), **kw)
        path = tmp_path / "saved.ckpt"
        made.save_checkpoint(path)
        if change is not None:
            checkpoint = read(path)
            change(checkpoint)
            torch.save(checkpoint, path)
        return path

    return make


def assert_resume_raises(path, match, *callbacks, error=StateError):
    """The error trains nothing and changes no weight."""
    module = Net(ADAM)
    with pytest.raises(error, match=match):
        fit(module, *(callbacks or [one_shot()]), ckpt_path=path, max_epochs=4)
    assert module.trained == 0


def test_checkpoint_is_weights_only_and_holds_tensors_and_builtins(saved):
    def walk(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                assert type(key) in (str, int)
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        else:
            assert type(value) in (torch.Tensor, str, int, float, bool, type(None)), type(value)

    for criterion in ("magnitude", "movement", "taylor", "random"):
        path = saved(
            MagnitudePruning(0.8, schedule=LEVELS, criterion=criterion, layers={"body.2": 0.5})
        )
        walk(read(path)["callbacks"][KEY])


@pytest.mark.parametrize("sparsity", [0.5, 0.99])
def test_masks_are_packed_bits(sparsity, saved):
    class Wide(Net):
        def __init__(self):
            super().__init__(ADAM)
            self.body = nn.Sequential(nn.Linear(6, 251), nn.Tanh(), nn.Linear(251, 253),
                                      nn.Linear(253, 3))  # fmt: skip

    module, pruning = Wide(), MagnitudePruning(sparsity, schedule=OneShot(0), keep_removed=False)
    path = saved(pruning, module=module, max_epochs=1)
    state = read(path)["callbacks"][KEY]["pruner"]
    size = sum(bits.numel() * bits.element_size() for bits in state["masks"]["bits"].values())
    weights = 4 * (6 * 251 + 251 * 253 + 253 * 3)
    assert size <= 0.032 * weights
    assert equal(dict(Masks.unpack(state["masks"])), dict(pruning.masks))
    assert state["removed_weights"] is None


def test_removed_values_take_only_their_own_space(saved):
    state = read(saved())["callbacks"][KEY]["pruner"]
    size = sum(v.numel() * v.element_size() for v in state["removed_weights"].values())
    assert size == 4 * round(0.8 * WEIGHTS)


def test_state_dict_works_before_a_fit():
    assert MagnitudePruning(0.5).state_dict()


@pytest.mark.parametrize(
    ("callbacks", "there"),
    [
        ((RandomState(),), "RandomState"),
        ((one_shot(include="body.0"),), r"MagnitudePruning\{'include': \('body.0',\)"),
        ((Events(),), "no callback"),
    ],
)
def test_checkpoint_without_masks_raises_with_the_name(callbacks, there, saved):
    assert_resume_raises(
        saved(*callbacks), f"has no masks of MagnitudePruning.*{there}.*load the weights into"
    )


def test_weights_only_checkpoint_does_not_resume(tmp_path):
    made = fit(Net(ADAM), one_shot())
    made.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert_resume_raises(tmp_path / "weights.ckpt", "contains only the model", error=KeyError)


def rename(checkpoint):
    masks = checkpoint["callbacks"][KEY]["pruner"]["masks"]
    for part in masks.values():
        part["head.weight"] = part.pop("body.2.weight")


def reshape(checkpoint):
    checkpoint["callbacks"][KEY]["pruner"]["masks"]["shapes"]["body.0.weight"] = [6, 16]


def shorten(checkpoint):
    bits = checkpoint["callbacks"][KEY]["pruner"]["masks"]["bits"]
    bits["body.2.weight"] = bits["body.2.weight"][:-1]


def empty_vault(checkpoint):
    checkpoint["callbacks"][KEY]["pruner"]["removed_weights"].pop("body.0.weight")


def other_format(checkpoint):
    checkpoint["callbacks"][KEY]["format"] = 99


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (rename, r"body\.2\.weight has no mask; head\.weight is masked but not selected"),
        (reshape, r"body\.0\.weight is \(16, 6\), its mask \(6, 16\)"),
        (shorten, r"masks of body\.2\.weight are missing or damaged"),
        (empty_vault, r"has 0 removed values of body\.0\.weight"),
        (other_format, "format 99"),
    ],
)
def test_masks_that_do_not_fit_raise_with_the_name(change, match, saved):
    def resealed(checkpoint):  # well made, of something else
        change(checkpoint)
        state = checkpoint["callbacks"][KEY]
        state["pruner"] = with_digest(state["pruner"])

    assert_resume_raises(saved(change=resealed), match)


def test_resuming_another_architecture_raises(saved):
    class Other(Net):
        def __init__(self):
            super().__init__(ADAM)
            self.strict_loading = False
            self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

        def on_load_checkpoint(self, checkpoint):
            checkpoint["state_dict"] = self.state_dict()

    module = Other()
    with pytest.raises(StateError, match=r"body\.0\.weight is \(8, 6\), its mask \(16, 6\)"):
        fit(module, one_shot(), ckpt_path=saved(), max_epochs=4)
    assert module.trained == 0


def test_resuming_with_another_target_raises(saved):
    other = MagnitudePruning(0.9, schedule=OneShot("3it"))
    assert_resume_raises(saved(), r"towards sparsity 0\.8, this callback towards 0\.9", other)


def test_keep_removed_needs_removed_values_in_the_checkpoint(saved):
    assert_resume_raises(
        saved(one_shot(keep_removed=False)), "write keep_removed=False here too", one_shot()
    )
    module, pruning = Net(ADAM), one_shot(keep_removed=False)
    fit(module, pruning, ckpt_path=saved(), max_epochs=4)  # less may be kept than was
    assert zeros(module) == round(0.8 * WEIGHTS)


def test_an_equivalent_selection_resumes(saved):
    """A string, a list and a tuple of patterns mean the same."""
    module, pruning = Net(ADAM), one_shot(include="body.0")
    path = saved(one_shot(include=["body.0"]))
    fit(module, pruning, ckpt_path=path, max_epochs=4)
    assert int((module.body[0].weight == 0).sum()) == round(0.8 * 96)


def everywhere(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def test_evaluating_a_checkpoint_uses_its_masks(tmp_path):
    """Masks belong to the loaded weights, and training continues from there."""
    module, pruning, events = Net(ADAM), MagnitudePruning(0.8, schedule=LEVELS), Events()
    made = trainer(everywhere(tmp_path), pruning, events, enable_checkpointing=True)
    made.fit(module, loader())
    for step, count in [(2, 0), (5, round(0.4 * WEIGHTS)), (16, round(0.8 * WEIGHTS))]:
        path = tmp_path / f"step={step}.ckpt"
        for what in (made.validate, made.test):
            what(module, loader(), ckpt_path=path, verbose=False)
            assert equal(copied(module), dict(read(path)["state_dict"]))
            assert zeros(module) == count
            assert pruning.masks.pruned == count
    assert len(events.seen) == 2


@pytest.mark.parametrize("step", [2, 5, 16])
def test_evaluation_before_a_fit_does_not_affect_it(step, tmp_path):
    fit(Net(ADAM), MagnitudePruning(0.8, schedule=LEVELS), everywhere(tmp_path),
        enable_checkpointing=True)  # fmt: skip
    module, pruning = Net(ADAM), MagnitudePruning(0.8, schedule=LEVELS)
    made, path = trainer(pruning), tmp_path / f"step={step}.ckpt"
    made.test(module, loader(), ckpt_path=path, verbose=False)
    places = {name: p == 0 for name, p in module.named_parameters()}
    made.fit(module, loader())
    assert zeros(module) == round(0.8 * WEIGHTS)
    for name, p in module.named_parameters():
        assert not p[places[name]].any(), "what was pruned stays pruned"


def test_evaluation_of_one_model_does_not_affect_a_fit_of_another(tmp_path):
    """The masks of the tested network do not affect a new network."""
    fit(Net(ADAM), MagnitudePruning(0.8, schedule=OneShot(0)), everywhere(tmp_path),
        enable_checkpointing=True)  # fmt: skip
    tested, fresh, pruning = Net(ADAM), Net(ADAM, seed=5), MagnitudePruning(0.8, schedule=LEVELS)
    made = trainer(pruning)
    made.test(tested, loader(), ckpt_path=tmp_path / "step=16.ckpt", verbose=False)
    with pytest.raises(StateError, match="another model object"):
        made.fit(fresh, loader())
    assert fresh.trained == 0
    assert zeros(fresh) == 0


def test_a_checkpoint_saved_after_an_evaluation_keeps_the_masks(tmp_path):
    fit(Net(ADAM), MagnitudePruning(0.8, schedule=LEVELS), everywhere(tmp_path),
        enable_checkpointing=True)  # fmt: skip
    module, pruning = Net(ADAM), MagnitudePruning(0.8, schedule=LEVELS)
    made = trainer(pruning)
    made.test(module, loader(), ckpt_path=tmp_path / "step=5.ckpt", verbose=False)
    made.save_checkpoint(tmp_path / "again.ckpt")
    state = read(tmp_path / "again.ckpt")["callbacks"][KEY]["pruner"]
    assert Masks.unpack(state["masks"]).pruned == round(0.4 * WEIGHTS)


def test_optimizer_state_at_pruned_places_is_zero_in_the_file(saved):
    made = fit(Net(lambda p: optim.SGD(p, lr=0.1, momentum=0.9)), one_shot())
    made.save_checkpoint("end.ckpt")
    checkpoint = read("end.ckpt")
    [state] = checkpoint["optimizer_states"]
    masks = Masks.unpack(checkpoint["callbacks"][KEY]["pruner"]["masks"])
    names = ["body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"]
    seen = SimpleNamespace(count=0)
    for number, name in enumerate(names):
        if name in masks:
            assert not state["state"][number]["momentum_buffer"][~masks[name]].any()
            seen.count += 1
    assert seen.count == 2


def test_state_saved_after_testing_another_checkpoint_matches_the_weights(tmp_path):
    pruning, module = prune_at_start(0.5), Net()
    job = trainer(pruning)
    job.fit(module, loader())
    job.save_checkpoint(tmp_path / "a.ckpt")
    job.test(module, loader(), ckpt_path=str(tmp_path / "a.ckpt"))
    pruning.prune_to(0.9)
    job.save_checkpoint(tmp_path / "b.ckpt")
    other = prune_at_start(0.5)
    other.attach(Net(), tmp_path / "b.ckpt")
    assert other.sparsity == round(0.9 * 144) / 144


def test_a_dense_checkpoint_discards_masks_with_a_warning(tmp_path):
    dense = Net()
    job = trainer(max_epochs=1)
    job.fit(dense, loader())
    job.save_checkpoint(tmp_path / "dense.ckpt")
    pruning, module = prune_at_start(), Net()
    job = trainer(pruning)
    job.fit(module, loader())
    with pytest.warns(UserWarning, match="previous masks are discarded"):
        job.test(module, loader(), ckpt_path=str(tmp_path / "dense.ckpt"))
    assert zeros(module) == 0
    assert pruning.sparsity == 0


@pytest.mark.parametrize(
    ("first", "then", "word"),
    [
        ({"granularity": "2:4"}, {}, "granularity"),
        ({}, {"criterion": "random"}, "criterion"),
        ({"distribution": "erk"}, {}, "distribution"),
        ({}, {"layers": {"body.0": 0.1}}, "layers"),
    ],
)
def test_resuming_with_another_method_raises(tmp_path, first, then, word):
    where = {"include": ["body.2"], "schedule": Table({"1it": 0.5})} if first else {}
    where = where or {"schedule": Table({"1it": 0.5})}
    module = Net()
    job = trainer(MagnitudePruning(**where, **first), max_epochs=1)
    job.fit(module, loader())
    job.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(StateError, match=f"the checkpoint was pruned with.*{word}="):
        trainer(MagnitudePruning(**where, **then)).fit(
            Net(), loader(), ckpt_path=str(tmp_path / "a.ckpt")
        )


def test_numpy_numbers_in_a_schedule_leave_the_checkpoint_loadable(tmp_path):
    np = pytest.importorskip("numpy")
    pruning = MagnitudePruning(0.75, schedule=Exponential(np.float64(0.5), "3it"))
    job = trainer(pruning)
    job.fit(Net(), loader())
    job.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
