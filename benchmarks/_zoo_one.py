# SPDX-License-Identifier: MIT
"""One architecture of `zoo.py`, in its own process: writes one line of JSON for each fact.

Times are CPU time: other processes may share the machine. The limit is one of CPU time too.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _vision import build, heads, pixels
from _zoo_deployed import DEPLOYED, Case, deployed
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from regrow.channels import prune
from regrow.channels.cut.channel_cut import ChannelCut as Plan
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import Group, groups_from_trace
from regrow.channels.graph.trace import Trace, trace
from regrow.profiling.macs import count_macs

SHARES = (0.3, 0.5)  # of the MACs, to go
ROUNDINGS = 1e-8  # relative error in float64 that counts as equal
SINGLE = 1e-8  # effect of rounding in float32
OUTPUT = "the network's output"


def tell(**facts: Any) -> None:
    """Print facts at once, so that they are kept if the process dies later."""
    print(json.dumps(facts), flush=True)


def words(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def outputs(case: Case, x: Any = None) -> list[Tensor]:
    """Outputs on the example, or on another input; of a detector before boxes are chosen."""
    model, x = case.model, case.example if x is None else x
    model.train().eval()  # some models cache a table of attention biases in eval mode
    seen: list[Any] = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda *given: seen.append(given[-1]))
        for path in case.compared
    ]
    with torch.no_grad():
        made = model(**x) if isinstance(x, dict) else model(x)
    for handle in handles:
        handle.remove()
    leaves = tree_leaves(seen or (dict(made) if isinstance(made, dict) else made))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def sizes(case: Case, found: list[Tensor]) -> list[Any]:
    """Shapes that a cut may not change; a detector may choose another number of boxes."""
    return [list(t.shape[1:] if case.compared else t.shape) for t in found]


def held(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference, relative to the largest number."""
    pairs = list(zip(one, other, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in pairs)


def changed(x: Any, factor: float) -> Any:
    """An input whose floating point numbers are multiplied by a factor."""
    return tree_map_only(Tensor, lambda t: t * factor if t.is_floating_point() else t, x)


def ours(case: Case) -> None:
    model = case.model.double()
    x = case.example = tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, case.example
    )
    dense, before = count_macs(model, x).macs, held(model)
    expected = outputs(case)
    size = sum(p.numel() for p in model.parameters())
    start = time.process_time()
    traced = trace(model, x)
    groups = groups_from_trace(traced, model)
    stuck = {g.name: g.fixed_reason for g in groups if g.fixed_reason and g.fixed_reason != OUTPUT}
    tell(
        seconds=time.process_time() - start,
        params=size / 1e6,
        macs=dense / 1e6,
        groups=len(groups),
        stuck=len(stuck),
        approximate=sum(bool(g.approximate_reasons) for g in groups if not g.fixed_reason),
        reasons=sorted(set(stuck.values())),
        untouched=same(before, held(model)),
    )
    tell(permuted=permuted(case, groups, expected))
    # the effect of rounding on this network, whose weights are untrained
    noise = apart(outputs(case, changed(x, 1 + 1e-15)), expected)
    tell(noise=max(noise, SINGLE if case.single else 0.0))
    for share in SHARES:
        facts: dict[str, Any] = {}
        start = time.process_time()
        try:
            with mock.patch(
                "regrow.channels.prune_channels.trace", return_value=traced
            ):  # once is enough
                plan = prune(model, x, share, of="macs")
        except Exception as error:
            facts["error"] = words(error)
        facts["seconds"] = time.process_time() - start
        if "error" not in facts:
            facts |= looked_at(case, plan, sizes(case, expected))
            facts |= {"went": 1 - facts.pop("macs") / dense, "smaller": facts.pop("n") < size}
            assert plan.undo is not None
            plan.undo()
        back = same(before, held(model))
        facts["untouched"] = back and apart(outputs(case), expected) == 0
        if back and "error" not in facts and share == SHARES[-1]:
            facts |= exactness(case, traced, groups, plan)
        tell(share=share, **facts)


def looked_at(case: Case, plan: Plan, shapes: list[Any]) -> dict[str, Any]:
    model, found = case.model, outputs(case)
    held_back = {n: r for n, r in plan.not_prunable.items() if r != OUTPUT}
    return {
        "macs": count_macs(model, case.example).macs,
        "n": sum(p.numel() for p in model.parameters()),
        "shapes": sizes(case, found) == shapes,
        "finite": all(bool(t.isfinite().all()) for t in found),
        "cut": len(plan.removed),
        "stuck": len(held_back),
        "reasons": sorted(set(held_back.values())),
        "plan_error": plan.error,
    }


def exactness(case: Case, traced: Trace, groups: tuple[Group, ...], plan: Plan) -> dict[str, Any]:
    """The same channels of the exact groups alone: cut, and zeroed by what is written here."""
    model, removed = case.model, dict[str, Tensor]()
    for group in groups:
        if group.name in plan.removed and not group.approximate_reasons:
            (name, dim), channels = next(iter(group.members.items()))
            removed[group.name] = channels[~plan.kept[name][dim]].unique()
            removed[group.name] = removed[group.name][removed[group.name] >= 0]
    if not removed:
        return {"exact_groups": 0, "error_exact": None}
    verified = TrialCut(model, traced, groups, case.example).find_valid(removed)
    small = outputs(case)
    verified.undo()
    kept = [g for g in groups if g.name in removed and g.name not in verified.failed]
    parameters = dict(model.named_parameters())
    saved = {name: p.data for name, p in parameters.items()}
    for group in kept:
        for (name, dim), channels in group.members.items():
            if name in parameters:
                places = torch.isin(channels, removed[group.name]).nonzero().flatten()
                parameter = parameters[name]
                parameter.data = parameter.data.index_fill(dim, places, 0)
    masked = outputs(case)
    for name, parameter in parameters.items():
        parameter.data = saved[name]
    return {"exact_groups": len(kept), "error_exact": apart(small, masked)}


def permuted(case: Case, groups: tuple[Group, ...], expected: list[Tensor]) -> float:
    """How much the outputs change when the channels of every group are permuted; should be 0."""
    parameters = dict(case.model.named_parameters()) | dict(case.model.named_buffers())
    saved = {name: p.data for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    for group in groups:
        if group.fixed_reason:
            continue
        order = torch.randperm(group.size, generator=generator)
        for (name, dim), channels in group.members.items():
            places = channels.argsort(stable=True)[int((channels < 0).sum()) :]
            if len(places) % group.size:
                return float("nan")
            moved = places.view(group.size, -1)[order].flatten()
            index = torch.arange(len(channels))
            index[places] = moved
            parameters[name].data = parameters[name].data.index_select(dim, index)
    found = outputs(case)
    for name, parameter in parameters.items():
        parameter.data = saved[name]
    return apart(found, expected)


def peer(case: Case) -> None:
    """Torch-Pruning as its README uses it: small steps until no more than the MACs asked remain."""
    import torch_pruning as tp

    model, x = case.model, case.example
    dense, size = count_macs(model, x).macs, sum(p.numel() for p in model.parameters())
    shapes = sizes(case, outputs(case))
    start = time.process_time()
    asked = list(SHARES)
    try:
        # its ratio is one of channels; half of them leave a quarter of the MACs, or so
        pruner = tp.pruner.BasePruner(
            model,
            x,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.6,
            iterative_steps=30,
            ignored_layers=case.heads,
        )
        tell(seconds=time.process_time() - start)
        for _ in range(30):
            pruner.step()
            went = 1 - count_macs(model, x).macs / dense
            while asked and went >= asked[0]:
                found = sizes(case, outputs(case))
                smaller = sum(p.numel() for p in model.parameters()) < size
                seconds = time.process_time() - start
                tell(
                    share=asked.pop(0),
                    went=went,
                    shapes=found == shapes,
                    smaller=smaller,
                    seconds=seconds,
                )
            if not asked:
                return
        error = f"30 steps to 60 % of the channels took {went:.0%} of the MACs"
    except Exception as caught:
        error = words(caught)
    for share in asked:
        tell(share=share, error=error, seconds=time.process_time() - start)


def child(
    side: str, source: str, name: str, size: int | None, argument: str, limit: int, file: Path
) -> None:
    """Entry point of the process; facts go to the file."""
    sys.stdout = file.open("w")
    sys.stderr = file.with_suffix(".err").open("w")
    torch.set_num_threads(1)
    if source in DEPLOYED:
        case = deployed(source, name)
    else:
        model = build(source, name, **({argument: size} if argument else {}))
        x = torch.randn(2, 3, *[size or pixels(model)] * 2)
        case = Case(model, x, heads(model))
        tell(pixels=x.shape[-1])
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + limit) + 1,) * 2)
    try:
        (ours if side == "ours" else peer)(case)
    except Exception as error:
        tell(ended=words(error))
