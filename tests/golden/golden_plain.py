# SPDX-License-Identifier: MIT
"""Cases without a Trainer: functions, pruners in plain loops, channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Any

import torch
from golden_digests import describe, digest
from golden_fits import ADAMW, IMAGE, SGD, Residual, dense, loader, samples, seed_all
from torch import nn

import regrow

IMAGES = torch.zeros(2, *IMAGE)
# Names that a redesign changes: what is used here -> how it has been called.
NAMES = {"remember": ("remember", "remember_original"), "pinned": ("pinned", "fixed_reason")}


def known(thing: Any, name: str) -> Any:
    """An attribute, by any of its names."""
    return next(getattr(thing, each) for each in NAMES[name] if hasattr(thing, each))


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def built(make: Callable[[], nn.Module] = dense, optimizer: Callable = SGD) -> tuple[Any, Any]:
    """A network that was trained for some steps, and its optimizer."""
    seed_all()
    net = make()
    made = optimizer(net.parameters())
    train(net, made)
    return net, made


def train(net: nn.Module, optimizer: Any, shape: Any = None, last: bool = True) -> None:
    """Eight steps; the last gradients stay."""
    shape = shape or (IMAGE if isinstance(net, Residual) else (8,))
    for batch in loader(shape):
        optimizer.zero_grad()
        loss(net, batch).backward()
        optimizer.step()


def callback_on(net: nn.Module, sparsity: float = 0.5, **kw: Any) -> Any:
    """A pruner with settings, outside a fit."""
    made = regrow.MagnitudePruning(sparsity, **kw)
    made.attach(net)
    return made


def pruned(make: Callable[[], nn.Module] = dense, sparsity: float = 0.7, **kw: Any) -> Any:
    net, optimizer = built(make)
    found = regrow.prune(net, sparsity, **kw)
    return describe(net, (), [optimizer], [found.sparsity], found)


def enforced() -> Any:
    net, optimizer = built(optimizer=ADAMW)
    found = regrow.prune(net, 0.7, distribution="erk")
    handle = regrow.enforce(net, found, optimizer)
    train(net, optimizer)
    handle.remove()
    return describe(net, (), [optimizer], None, found)


def hooked(soft: bool = False) -> Any:
    """A plain loop that prunes gradually, is saved, and continues with another pruner."""
    net, optimizer = built(optimizer=ADAMW)
    pruner = regrow.Pruner(net, keep_removed=True, soft=soft)
    with pruner.hook(optimizer):
        for sparsity in (0.3, 0.6):
            pruner.prune_to(sparsity, [optimizer])
            train(net, optimizer)
        state = pruner.state_dict()
    again = regrow.Pruner(net, keep_removed=True, soft=soft)
    again.load_state_dict(state)
    with again.hook(optimizer):
        again.prune_to(0.8, [optimizer])
        train(net, optimizer)
    first = digest(sorted(net.state_dict().items()))
    again.unprune(["4"], [optimizer])
    return describe(net, [again], [optimizer], first)


def regrown(init: str, by: str = "random") -> Any:
    """Pruned, trained, regrown, trained, un-pruned."""
    net, optimizer = built(optimizer=ADAMW)
    pruner = regrow.Pruner(net, keep_removed="moments")
    if init == "original":
        known(pruner, "remember")()
    with pruner.hook(optimizer):
        pruner.prune_to(0.7, [optimizer])
        train(net, optimizer)
    loss(net, next(iter(loader()))).backward()  # dense gradients
    pruner.regrow(0.5, by=by, init=init, optimizers=[optimizer])
    seen = [digest(sorted(net.state_dict().items()))]
    with pruner.hook(optimizer):
        train(net, optimizer)
        pruner.prune_to(0.8, [optimizer])
    seen.append(digest(sorted(net.state_dict().items())))
    pruner.unprune(["0.weight"], [optimizer])
    pruner.regrow(count=20, by="removed", init="removed", names=["4"], optimizers=[optimizer])
    return describe(net, [pruner], [optimizer], seen)


def rows(weight: torch.Tensor, grad: torch.Tensor | None) -> torch.Tensor:
    return weight.abs().flatten(1).sum(1)[:, None].expand_as(weight).contiguous()


def whole_rows() -> Any:
    """Orthogonal filters come back whole."""
    net, _ = built()
    made = callback_on(net, criterion=rows, distribution="uniform", include=["4", "6"])
    made.prune_to(0.5)
    made.regrow(1.0, init="orthogonal")
    return describe(net, [made])


def adopted() -> Any:
    """A callback outside a fit: prune, attach to a copy, regrow there, un-prune in part."""
    net, _ = built()
    made = callback_on(net, 0.8, layers={"0": 0.5}, keep_removed=True, seed=5)
    made.prune_to(0.8)
    other = dense()
    other.load_state_dict(net.state_dict())
    made.attach(other)
    made.regrow(0.25, init="xavier")
    first = digest(sorted(other.state_dict().items()))
    made.unprune("4")
    return describe(other, [made], (), first)


def from_zero() -> Any:
    """All weights return at zero, and are pruned again."""
    net, optimizer = built()
    made = callback_on(net, granularity="block:4x4", distribution="uniform")
    made.prune_to(0.5)
    made.prune_to(0)
    train(net, optimizer)
    made.prune_to(0.25)
    return describe(net, [made], [optimizer])


def scored(method: str) -> Any:
    """Scores before training, and the masks that follow."""
    seed_all()
    net = dense()
    batches = list(loader())[:3]
    if method == "synflow":
        scores = regrow.synflow(net, torch.zeros(2, 8), 0.7, rounds=4)
    else:
        scores = getattr(regrow, method)(net, batches, loss)
    found = regrow.prune(net, 0.7, criterion=scores)
    return describe(net, (), (), digest(sorted(scores.items())), found)


def movement() -> Any:
    """Movement scores accumulated in a plain loop."""
    net, optimizer = built()
    made = callback_on(net, criterion="movement")
    for _ in range(2):
        train(net, optimizer)
        made.pruner.update(optimizer)
        made.prune_to(0.25 if not made.sparsity else 0.5)
    return describe(net, [made], [optimizer])


def cut(sparsity: float = 0.5, undo: bool = False, **kw: Any) -> Any:
    """Channels are cut in one step, and the cut is undone."""
    net, _ = built(Residual)
    plan = regrow.channels.prune(net, IMAGES, sparsity, **{"round_to": 1} | kw)
    seen = [sorted(plan.removed.items()), digest(sorted(net.state_dict().items()))]
    seen.append(digest([("out", outputs(net))]))
    if undo:
        plan.undo()
    return describe(net, (), (), seen)


def outputs(net: nn.Module) -> torch.Tensor:
    mode = net.training
    with torch.no_grad():
        found = net.eval()(samples(IMAGE, 8).tensors[0])
    net.train(mode)
    return found


def masked_channels() -> Any:
    """Channels are masked, brought back, masked, cut, trained, and expanded."""
    net, optimizer = built(Residual, ADAMW)
    pruner = regrow.ChannelPruner(net, IMAGES)
    seen = []

    def look() -> None:
        seen.append(digest(sorted(net.state_dict().items())))

    with held(pruner, optimizer):
        pruner.prune_to(0.3, [optimizer])
        look()
        train(net, optimizer)
        pruner.unprune(["one"], [optimizer])
        look()
        pruner.regrow(count=2, by="removed", init="he", optimizers=[optimizer])
        train(net, optimizer)
        pruner.prune_to(0.5, [optimizer])
        plan = pruner.compact([optimizer])
        look()
        train(net, optimizer)
        seen.append(sorted(plan.removed.items()))
        pruner.expand([optimizer])
    return describe(net, [pruner], [optimizer], seen)


class held:
    """Apply the masks after each step, also for pruners without a hook."""

    def __init__(self, pruner: Any, optimizer: Any) -> None:
        self.handle = optimizer.register_step_post_hook(lambda *_: pruner.enforce([optimizer]))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


def groups() -> Any:
    net, _ = built(Residual)
    found = regrow.channels.groups(net, IMAGES)
    rows = [[g.name, g.size, bool(known(g, "pinned")), sorted(g.members.items())] for g in found]
    return describe(net, (), (), rows)


def recalibrated() -> Any:
    net, _ = built(Residual)
    regrow.channels.prune(net, IMAGES, 0.3, round_to=1)
    regrow.channels.recalibrate(net, [(batch[0],) for batch in loader(IMAGE)])
    return describe(net)


def sensitivity(by: str) -> Any:
    net, _ = built(Residual)

    def evaluate(model: nn.Module) -> float:
        return -float(nn.functional.cross_entropy(outputs(model), torch.arange(8) % 4))

    example = IMAGES if by == "channels" else None
    found = regrow.sensitivity(net, evaluate, (0.25, 0.5), by=by, example_input=example)
    values = [astuple(row) for row in found.rows]
    return describe(net, (), (), [found.accuracy, values, sorted(found.excluded)])


def plain_cases() -> dict[str, Callable[[], Any]]:
    cases: dict[str, Callable[[], Any]] = {}
    for word in ("global", "uniform", "erk", "lamp"):
        cases[f"prune/{word}"] = partial(pruned, distribution=word)
        cases[f"prune/images_{word}"] = partial(pruned, Residual, distribution=word)
        cases[f"prune/blocks_{word}"] = partial(pruned, granularity="block:4x2", distribution=word)
    for word in ("random", "gradient", "taylor", "snip"):
        cases[f"prune/{word}"] = partial(pruned, criterion=word, seed=3)
    cases["prune/2:4"] = partial(pruned, dense, 0.5, granularity="2:4")
    cases["prune/layers"] = partial(pruned, layers={"0": 0.2}, exclude=["@last"])
    cases |= {"enforce": enforced, "pruner/hook": hooked, "pruner/soft": partial(hooked, True)}
    inits = ("zero", "removed", "original", "he", "sparse_he", "kaiming_normal")
    for init in (*inits, "kaiming_uniform", "xavier", "survivors"):
        cases[f"pruner/regrow_{init}"] = partial(regrown, init)
    for by in ("gradient", "removed"):
        cases[f"pruner/regrow_by_{by}"] = partial(regrown, "removed", by)
    cases |= {"pruner/orthogonal": whole_rows, "pruner/attach": adopted}
    cases |= {"pruner/from_zero": from_zero, "pruner/movement": movement}
    for method in ("snip", "grasp", "synflow"):
        cases[f"scores/{method}"] = partial(scored, method)
    for of in ("channels", "macs", "params"):
        cases[f"cut/{of}"] = partial(cut, of=of)
        cases[f"cut/{of}_undone"] = partial(cut, of=of, undo=True)
    for word in ("l1", "bn", "taylor", "fpgm", "random"):
        kw = {"exclude": ["hidden"]} if word == "bn" else {}
        cases[f"cut/{word}"] = partial(cut, criterion=word, distribution="uniform", **kw)
    cases["cut/rounded"] = partial(cut, round_to=4, exclude=["two"])
    cases |= {"channels/pruner": masked_channels, "channels/groups": groups}
    cases["channels/recalibrate"] = recalibrated
    for by in ("weights", "channels"):
        cases[f"sensitivity/{by}"] = partial(sensitivity, by)
    return cases


PLAIN = plain_cases()
