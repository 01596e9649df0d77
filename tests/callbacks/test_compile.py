# SPDX-License-Identifier: MIT
"""Compiled models and steps: as few compilations as without pruning, and the same numbers."""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from compiled_modules import WAYS, Inner, Whole, none
from tiny_fits import ADAM, SGD, WEIGHTS, Watch, copied, equal, fit, loader, zeros
from torch._dynamo.testing import CompileCounter
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from regrow import AccuracyBudget, DynamicSparseTraining, MagnitudePruning, Regrow, Table

EVENTS = Table({"2it": 0.2, "4it": 0.4, "6it": 0.5, "9it": 0.6, "11it": 0.7, "13it": 0.8})


PRUNERS = {
    "gradual": lambda: [MagnitudePruning(0.8, schedule=EVENTS)],
    "taylor": lambda: [MagnitudePruning(0.8, schedule=EVENTS, criterion="taylor")],
    "soft": lambda: [MagnitudePruning(0.8, schedule=EVENTS, soft=True)],
    "rigl": lambda: [DynamicSparseTraining(0.8, every="2it", end=0.9, skip_update=True)],
    "regrow": lambda: [
        MagnitudePruning(0.8, schedule=EVENTS),
        Regrow(["5it", "8it"], 0.2, by="gradient", train="regrown"),
    ],
    "budget": lambda: [
        AccuracyBudget("val/loss", 1.0, mode="min", reference=9.0),
        MagnitudePruning(0.8, schedule=Table({"0it": 0.8})),
    ],
}


@contextmanager
def counting():
    """A compiler backend that only counts the graphs it is given."""
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


def trained(way, kind, counter):
    module, wrapper = WAYS.get(way, none)(counter)
    callbacks = PRUNERS[kind]() if kind else []
    fit(module if wrapper is None else wrapper, *callbacks, val=loader(2))
    return module, callbacks


@cache
def unpruned(way):
    """How often a control is compiled."""
    with counting() as control:
        trained(way, None, control)
    return control.frame_count


FAST = [("inner", kind) for kind in ("gradual", "soft", "rigl", "regrow")] + [
    ("late", "gradual"),
    ("whole", "gradual"),
]
SLOW = [(w, k) for w in WAYS for k in PRUNERS if (w, k) not in FAST]


@pytest.mark.parametrize(
    ("way", "kind"), [*FAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]
)
def test_an_event_compiles_nothing(way, kind):
    """As often as a control without pruning; the weights are those of a plain run."""
    with counting() as counter:
        module, callbacks = trained(way, kind, counter)
    plain, others = trained("none", kind, None)
    assert counter.frame_count == unpruned(way) >= 1
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    masks = [dict(c.masks) for c in callbacks if hasattr(c, "masks")]
    assert equal(masks, [dict(c.masks) for c in others if hasattr(c, "masks")])
    assert [*masks[0]] == ["body.0.weight", "body.2.weight"]


def compiled_step(counter, make=SGD):  # after Adam weights just grown are near ties
    """What users write in `configure_optimizers`."""

    def configured(parameters):
        optimizer = make(parameters)
        optimizer.step = torch.compile(optimizer.step, backend=counter)
        return optimizer

    return configured


class Bare(Whole):
    """The step alone is compiled, without the passes that Lightning runs within it."""

    counter = None

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer_closure()
        if not hasattr(self, "bare"):
            self.bare = torch.compile(optimizer.optimizer.step, backend=self.counter)
        self.bare()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gradual", "rigl", "soft"])
def test_a_compiled_step_is_not_compiled_again(kind):
    """Lightning runs all of a step within `optimizer.step`, events by gradient included."""
    with counting() as control:
        fit(Whole(compiled_step(control)))
    with counting() as counter:
        module, [pruning] = Whole(compiled_step(counter)), PRUNERS[kind]()
        fit(module, pruning)
    assert control.frame_count >= 1
    # where an update is skipped, a step without gradients is one more shape
    assert counter.frame_count <= control.frame_count + (kind == "rigl")
    assert pruning.pruner.pruned == round(0.8 * WEIGHTS)
    plain, others = Whole(SGD), PRUNERS[kind]()
    fit(plain, *others)
    assert equal(dict(pruning.masks), dict(others[0].masks))
    torch.testing.assert_close(copied(module), copied(plain))  # it sums in another order


@pytest.mark.parametrize("kind", ["gradual", "soft"])
def test_pruning_adds_no_compilation_to_a_plain_compiled_step(kind):
    seen = []
    for callbacks in ([], PRUNERS[kind]()):
        with counting() as counter:
            module = Bare(ADAM)
            module.counter = counter
            fit(module, *callbacks, max_epochs=2)
            seen.append(counter.frame_count)
    assert seen[1] == seen[0] >= 1
    assert zeros(module) == round(0.8 * WEIGHTS)


def real_compiler():
    """Inductor where there is a C compiler for it; else what comes nearest."""
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return "aot_eager"
    return "inductor"


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("real", marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_masks_hold_with_a_compiled_backward(backend, precision):
    module = Inner(real_compiler() if backend == "real" else backend)
    watch, pruning = Watch(), MagnitudePruning(0.8, schedule=EVENTS)
    fit(module, watch, pruning, val=loader(2), precision=precision)
    assert watch.steps == [2, 4, 6, 9, 11, 13]
    assert zeros(module) == round(0.8 * WEIGHTS)
