# SPDX-License-Identifier: MIT
"""One-shot channel pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regrow.calibration.calibrate import inputs_of, refit_layers
from regrow.calibration.layer_rows import LayerRows
from regrow.calibration.moments import Data, find_transforming, order_layers
from regrow.calibration.sequence_rows import find_rows
from regrow.channels.allocation import TOLERANCE, allocate
from regrow.channels.config import ChannelConfig, RoundTo
from regrow.channels.cut.channel_cut import ChannelCut, make_channel_cut
from regrow.channels.cut.surgery import RemovedChannels, UndoLog, kept_indices
from regrow.channels.cut.verify import TrialCut, Verified
from regrow.channels.graph.groups import Group, groups_from_trace
from regrow.channels.graph.trace import Trace, trace
from regrow.channels.importance import ChannelCriterion, channel_scores, get_channel_criterion
from regrow.channels.latency_budget import LatencyTimer, latency_budget
from regrow.channels.size import Sizes, count_work
from regrow.masks.targets import select_targets
from regrow.utils.batches import two_examples
from regrow.utils.errors import ConfigError, check_sparsity, join_limited
from regrow.utils.logging import warn
from regrow.utils.names import matches_pattern, modules, parameters

Timer = Callable[[nn.Module], float]
Link = tuple[str, ...]  # groups that keep the same fraction
MOST_LISTED = 5  # groups that cannot be cut
REFIT_SAMPLES = 1024  # examples
DAMPING = 1e-3  # ridge term of a refit, as a fraction of the mean squared input


def prune(
    model: nn.Module,
    example_input: Any,
    sparsity: float = 0.5,
    *,
    of: str = "channels",
    distribution: str = "global",
    criterion: str | ChannelCriterion = "l2",
    round_to: RoundTo = "auto",
    min_channels: int = 1,
    max_sparsity: float | None = None,
    layers: Mapping[str, float] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    latency_ms: float | None = None,
    timer: Timer | None = None,
    seed: int = 0,
    refit: Iterable[Any] | None = None,
) -> ChannelCut:
    """Remove channels from a model in place.

    Parameters stay the same objects; optimizers made before need `slice_optimizer_state`. The
    returned cut names the groups that could not be cut, and those whose cut is only approximately
    what the masked model computes; its `undo()` restores the model bit-exactly.

    Args:
        model: The model.
        example_input: A batch; a tuple holds positional arguments, a dict keyword arguments.
        sparsity: Fraction of `of` to remove, in [0, 1).
        of: "channels", "macs", "params" or "latency" (measured here on the example's batch).
        distribution: As in `regrow.ChannelPruning`, like all that follow.
        criterion: How channels are ranked.
        round_to: Kept counts are multiples of it.
        min_channels: Minimum number of channels that stay in a group.
        max_sparsity: Largest fraction of its channels that a group may lose.
        layers: Fractions that the groups of some layers lose, such as `{"stage3.*": 0.3}`.
        include: Patterns of layers that may be cut.
        exclude: Patterns of layers that keep their channels.
        latency_ms: Milliseconds of a forward pass, instead of `sparsity`.
        timer: A function `model -> milliseconds`; None: measured here.
        seed: For `criterion="random"`.
        refit: Unlabelled batches, of about 1,024 examples, to refit what reads removed channels.

    Raises:
        ConfigError: For settings that cannot be met; the model is unchanged.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = prune(net, torch.zeros(2, 4), 0.5)
        >>> net[0].weight.shape, net[2].in_features, plan.removed
        (torch.Size([4, 4]), 4, {'0': 4})
    """
    limits = (round_to, min_channels, include, exclude, seed, timer, latency_ms)
    config = ChannelConfig(criterion, distribution, of, *limits, max_sparsity, layers).validated()
    given = None if refit is None else _dense_and_inputs(model, refit)
    plan = _cut_until_valid(model, example_input, check_sparsity("sparsity", sparsity), config)
    if given is not None:
        _refit_consumers(model, *given, plan)
    return plan


def _cut_until_valid(
    model: nn.Module, example_input: Any, sparsity: float, config: ChannelConfig
) -> ChannelCut:
    """Choose channels and cut them, until the cut model runs and is within the budget."""
    criterion = get_channel_criterion(config.criterion, config.seed)
    two, measured = two_examples(example_input, model), config.of == "latency"
    timer = LatencyTimer(config.timer, example_input, model if measured else None)
    traced = trace(model, two)
    groups = select_groups(groups_from_trace(traced, model), model, config)
    warn_of_unused(model, traced, groups)
    trial = TrialCut(model, traced, groups, two)
    linked, together, correction = list[Link](), LinkedGroups(), BudgetCorrection()
    corrected = config.of == "macs" and not traced.heads  # detectors choose more boxes, or fewer
    while True:
        free = prunable_groups(groups, model, two)
        scores = {g.name: channel_scores(g, parameters(model), criterion) for g in free}
        sizes = Sizes(model, free, two, "macs" if measured else config.of)
        choose = partial(
            allocate,
            free,
            scores,
            sizes.after,
            config=config,
            own=by_group(groups, layer_targets(groups, model, config)),
            links=linked,
            fixed=partial(describe_fixed, groups, model, two),
        )
        budget = (1 - sparsity) * sizes.dense * (1 + 1e-12)  # 1 - 0.9 is less than 0.1
        if measured:
            dense = timer.original(model, example_input)
            limit = (1 - sparsity) * dense if config.latency_ms is None else config.latency_ms
            measure = partial(timer, example=example_input)
            removed = latency_budget(choose, sizes.dense, trial, measure, dense, limit)
        else:
            removed = choose(budget + correction.now)
        found = trial.find_valid(removed, linked)
        if found.failed:  # other groups lose more instead
            found.undo()
            reasons, linked = together.after(trial, found.failed, linked)
            trial.groups = groups = fix_groups(groups, reasons)
        elif not corrected or correction.is_settled(
            sizes, removed, count_work(model, two).macs, budget
        ):
            break
        else:
            found.undo()
    cut = record_cut(model, groups, removed, found)
    cut.not_prunable = {group.name: group.fixed_reason for group in groups if group.fixed_reason}
    cut.speedup = timer.speedup(model, example_input) if measured else None
    return cut


def warn_of_unused(model: nn.Module, traced: Trace, groups: Sequence[Group]) -> None:
    """Warn of weights that the traced run does not use, and that may read channels to be cut."""
    sizes = {group.size for group in groups if not group.fixed_reason}
    unused = [
        name
        for name, parameter in parameters(model).items()
        if name not in traced.used and parameter.ndim > 1 and sizes & {*parameter.shape[:2]}
    ]
    if unused:
        warn(
            f"the forward pass of the example does not use {join_limited(unused)}: if other code "
            "runs them on channels that are cut, it fails; pass an example input with which they "
            "run, or exclude the layers that they read"
        )


def record_cut(
    model: nn.Module, groups: Sequence[Group], removed: RemovedChannels, found: Verified
) -> ChannelCut:
    """Make the record of a verified cut."""
    counts = {name: len(channels) for name, channels in removed.items() if len(channels)}
    approximate = {g.name: g.approximate_reasons for g in groups if g.name in counts}
    return make_channel_cut(
        model,
        kept_indices(groups, removed),
        found.undo,
        removed=counts,
        approximate={name: reasons for name, reasons in approximate.items() if reasons},
        error=found.error,
    )


def _dense_and_inputs(model: nn.Module, batches: Iterable[Any]) -> tuple[nn.Module, Data]:
    return copy.deepcopy(model), Data(inputs_of(model, batches, REFIT_SAMPLES))


def _refit_consumers(model: nn.Module, dense: nn.Module, data: Data, plan: ChannelCut) -> None:
    """Refit weights and biases of layers whose inputs were cut, in the order in which they run.

    Each reproduces, by least squares, the outputs that it had in the dense network from the inputs
    that are left. Layers whose number of groups changed, recurrent ones, attention and layers that
    share or compute their weight stay as they are, with a warning. The cut's undo then restores the
    biases too.
    """
    undo = plan.undo or UndoLog()
    with undo.on_error():
        originals = dict(zip(model.modules(), dense.modules(), strict=True))
        layers = [
            layer
            for layer in find_rows(model)
            if type(layer) is LayerRows  # recurrent layers and attention stay as they are
            and _input_dim(layer) in plan.kept.get(layer.name, {})
            and layer.groups == getattr(originals[layer.module], "groups", layer.groups)
        ]
        transforming = find_transforming(model, layers, data.batches)
        layers = [layer for layer in layers if layer.name not in transforming]
        ordered = order_layers(model, layers, data.batches)
        _warn_of_unrefitted(model, plan, ordered)
        masks = {layer.name: torch.ones_like(layer.weight, dtype=torch.bool) for layer in ordered}
        outputs: dict[str, Tensor] = {}  # which of all groups are left, where not all are
        for layer in ordered:
            dim = 1 - _input_dim(layer)
            kept = plan.kept[layer.name].get(dim)
            if kept is not None:
                outputs[layer.name] = kept.repeat(layer.groups) if dim else kept
            if layer.bias is not None:
                undo.keep(layer.bias)
        refit_layers(model, dense, ordered, masks, data, DAMPING, outputs)


def _warn_of_unrefitted(model: nn.Module, plan: ChannelCut, refitted: Sequence[LayerRows]) -> None:
    known = {layer.name for layer in refitted}
    transposed = {f"{p}.weight" for p, m in modules(model).items() if getattr(m, "transposed", 0)}
    matrices = [name for name, parameter in parameters(model).items() if parameter.ndim > 1]
    reading = [n for n in matrices if int(n not in transposed) in plan.kept.get(n, {})]
    if left := [name for name in reading if name not in known]:
        warn(
            f"refit= leaves {join_limited(left)} as they are: it refits Linear layers and "
            "convolutions that use their weight unchanged and alone, and keep all groups"
        )


def _input_dim(layer: LayerRows) -> int:
    return 0 if getattr(layer.module, "transposed", False) else 1


def prunable_groups(groups: Sequence[Group], model: nn.Module, example_input: Any) -> list[Group]:
    """Return the groups that can be cut; raise `ConfigError` if there are none."""
    free = [group for group in groups if not group.fixed_reason]
    if not free:
        raise ConfigError(f"no channels can be cut: {describe_fixed(groups, model, example_input)}")
    return free


def describe_fixed(groups: Sequence[Group], model: nn.Module, example_input: Any) -> str:
    """List the groups that cannot be cut, those with most MACs first, with the reasons."""
    fixed = [group for group in groups if group.fixed_reason]
    if not fixed:
        return "no group is fixed" if groups else "the model has no layers with channels"
    macs, weights = (Sizes(model, fixed, example_input, of) for of in ("macs", "params"))
    shares: dict[str, tuple[float, str]] = {}
    for group in fixed:
        every = {group.name: torch.arange(group.size)}
        share = 1 - macs.after(every) / max(macs.dense, 1)
        shares[group.name] = share, "MACs"
        if not share:  # the work of some layers, such as recurrent ones, is not counted
            shares[group.name] = 1 - weights.after(every) / max(weights.dense, 1), "parameters"
    fixed.sort(key=lambda group: -shares[group.name][0])
    lines = []
    for group in fixed[:MOST_LISTED]:
        share, unit = shares[group.name]
        lines.append(f"{group.name} ({share:.0%} of the {unit}): {group.fixed_reason}")
    more = len(fixed) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")


def fix_groups(groups: Sequence[Group], reasons: Mapping[str, str]) -> tuple[Group, ...]:
    """Mark groups as not prunable, with a reason by name."""
    return tuple(
        replace(g, fixed_reason=reasons[g.name]) if g.name in reasons else g for g in groups
    )


def select_groups(
    groups: Sequence[Group], model: nn.Module, config: ChannelConfig
) -> tuple[Group, ...]:
    """Mark groups of layers that `include` and `exclude` leave out as not prunable."""
    if config.include is None and config.exclude is None:
        return tuple(groups)
    wanted = {t.name for t in select_targets(model, config.include, config.exclude).targets}
    usual = {target.name for target in select_targets(model).targets}
    computed = {name for group in groups for name, _ in group.rows} - usual  # as by weight norm
    outside = usual - wanted | {name for name in computed if not _is_wanted(name, config)}
    free = [group for group in groups if not group.fixed_reason]
    left_out = {g.name: [name for name, _ in g.rows if name in outside] for g in free}
    reasons = {g: f"{rows[0]} is excluded or not included" for g, rows in left_out.items() if rows}
    return fix_groups(groups, reasons)


def _is_wanted(name: str, config: ChannelConfig) -> bool:
    included = config.include is None or any(matches_pattern(name, p) for p in config.include)
    return included and not any(matches_pattern(name, p) for p in config.exclude or ())


def layer_targets(
    groups: Sequence[Group], model: nn.Module, config: ChannelConfig
) -> dict[str, float]:
    """Return the fractions of `config.layers`, by the weights whose outputs can be cut."""
    if not config.layers:
        return {}
    selection = select_targets(model, config.include, config.exclude)
    own = selection.own_targets(config.layers)
    free = {name: group for group in groups if not group.fixed_reason for name, _ in group.rows}
    fixed = {name: group for group in groups if group.fixed_reason for name, _ in group.rows}
    for pattern in config.layers:
        names = selection.match(pattern, "layers")
        if not any(name in free for name in names):
            reasons = [f"{n}: {fixed[n].fixed_reason}" for n in names if n in fixed]
            raise ConfigError(
                f"layers pattern {pattern!r} matches no layer that can be cut "
                f"({join_limited(reasons) or 'only layers without channels'}): leave it out"
            )
    for group in {group.name: group for group in free.values()}.values():
        shared = {name: own[name] for name, _ in group.rows if name in own}
        if len({*shared.values()}) > 1:
            raise ConfigError(
                f"these layers share channels, which they lose together, and layers= asks for "
                f"different fractions of them: {shared}; write one fraction for all"
            )
    return {name: sparsity for name, sparsity in own.items() if name in free}


def by_group(groups: Sequence[Group], own: Mapping[str, float]) -> dict[str, float]:
    """Return fractions by group, given those by the weights that compute its channels."""
    return {group.name: own[name] for group in groups for name, _ in group.rows if name in own}


class LinkedGroups:
    """Sets of groups that keep the same fraction, because alone they made the network fail."""

    def __init__(self) -> None:
        self._tried = set[Link]()
        self._alone = dict[str, str]()  # groups that failed outside a set, with the error

    def after(
        self, trial: TrialCut, failed: Mapping[str, str], linked: Sequence[Link]
    ) -> tuple[dict[str, str], list[Link]]:
        """Return the groups that cannot be cut, with the reason, and the sets to try next.

        Where a set fails too, its groups that had failed alone cannot be cut.
        """
        broken = [names for names in linked if failed.keys() & {*names}]
        inside = {name for names in broken for name in names}
        self._alone |= {name: why for name, why in failed.items() if name not in inside}
        blamed = {name for name in self._alone if name in inside or name in failed}
        valid = [names for names in linked if names not in broken]
        links = trial.links(blamed.union(*valid), self._tried)
        new = [names for names in links if blamed & {*names}]
        self._tried |= {*new}
        retried = {name for names in new for name in names}
        reasons = {name: self._alone[name] for name in blamed - retried}
        return reasons, [names for names in valid if not retried & {*names}] + new


class BudgetCorrection:
    """Adds MACs to a budget, because products without weights (attention) shrink too."""

    def __init__(self) -> None:
        self.now, self._valid, self._tries = 0.0, 0.0, 4

    def is_settled(
        self, sizes: Sizes, removed: RemovedChannels, left: float, budget: float
    ) -> bool:
        """Check whether a cut is as close to its budget as it can be; else update `now`."""
        if left <= budget:
            self._valid = self.now
            if budget - left <= TOLERANCE * sizes.dense:
                return True
        if not self._tries:
            return True
        better = sizes.after(removed) - left
        self._tries -= 1
        if not self._tries or abs(better - self.now) < TOLERANCE / 10 * sizes.dense:
            self._tries, better = 0, self._valid  # the last that met the budget
        settled, self.now = better == self.now, better
        return settled
