# SPDX-License-Identifier: MIT
"""Selection of the parameters to prune, by patterns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from regrow.distributed.shard import Shard, local_tensor, reshard_fsdp, shard_of
from regrow.masks.heads import HeadPart, find_heads
from regrow.utils.errors import ConfigError, StateError, check_patterns, closest_names, join_limited
from regrow.utils.names import (
    check_has_values,
    matches_pattern,
    name_parts,
    strip_compile_prefix,
)

_LAYER_TYPES = (_ConvNd, nn.Linear)
_WEIGHTS = {  # the weights of linear maps in modules that keep several, by the start of their names
    nn.RNNBase: ("weight_ih", "weight_hh", "weight_hr"),
    nn.RNNCellBase: ("weight_ih", "weight_hh"),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_w", "k_proj_w", "v_proj_w"),
}
# not those of a byte: zero bits need not mean 0 (float8_e8m0fnu), or encode two numbers (float4)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SELECTORS = ("@first", "@last", "@depthwise")


@dataclass(frozen=True, eq=False)
class Target:
    """A parameter to prune."""

    name: str  # without `torch.compile`'s prefix
    parameter: nn.Parameter
    # of Linear `(out, in)` and Conv `(out, in, kh, kw)` 1; of transposed ones `(in, out, kh, kw)` 0
    input_dim: int | None = 1
    groups: int = 1  # of a convolution, whose weight holds `in / groups` inputs
    heads: HeadPart | str = "no head"  # where its attention heads are, or why there are none

    @cached_property
    def shard(self) -> Shard | None:
        """The shard of this rank; None if the parameter is not sharded."""
        return shard_of(self.name, self.parameter)

    @property
    def weight(self) -> Tensor:
        """Its values, to read and write; this rank's rows if it is sharded."""
        return local_tensor(self.parameter.detach())

    @property
    def grad(self) -> Tensor | None:
        """Its gradient; this rank's rows if it is sharded."""
        grad = self.parameter.grad
        return None if grad is None else local_tensor(grad)


@dataclass(frozen=True, eq=False)
class _Entry:
    """A parameter of the model, with its names and the modules that own it."""

    names: tuple[str, ...]
    parameter: Tensor
    owners: tuple[nn.Module, ...]

    @property
    def default(self) -> bool:
        pairs = zip(self.owners, self.names, strict=True)
        return all(_is_linear_map(owner, name.rpartition(".")[2]) for owner, name in pairs)

    @property
    def depthwise(self) -> bool:
        return any(
            isinstance(owner, _ConvNd) and 1 < owner.groups == owner.in_channels
            for owner in self.owners
        )

    @property
    def kind(self) -> str:
        kinds = sorted({type(owner).__name__ for owner in self.owners})
        return f"{self.names[0].rpartition('.')[2]} of {' and '.join(kinds)}"


def _is_linear_map(owner: nn.Module, name: str) -> bool:
    if isinstance(owner, _LAYER_TYPES):
        return name == "weight"
    return any(isinstance(owner, t) and name.startswith(starts) for t, starts in _WEIGHTS.items())


@dataclass(frozen=True)
class TargetSelection:
    """The targets in model order, and the reasons why other parameters are not pruned."""

    targets: tuple[Target, ...]
    reasons: Mapping[str, str]  # why others may not be pruned, by name
    total: int  # weights of the model, those of shared parameters counted once
    _entries: tuple[_Entry, ...]

    @property
    def prunable(self) -> int:
        """How many weights may be pruned."""
        return sum(target.parameter.numel() for target in self.targets)

    def match(self, pattern: str, what: str) -> list[str]:
        """Return the names of the targets that a pattern matches, at least one."""
        return [entry.names[0] for entry in _match(pattern, self._entries, what)]

    def own_targets(self, layers: Mapping[str, float]) -> dict[str, float]:
        """Return the sparsity of each target by the first pattern of `layers` that matches it."""
        found: dict[str, float] = {}
        for pattern, sparsity in layers.items():
            names = self.match(pattern, "layers")
            if all(found.get(name, sparsity) != sparsity for name in names):
                raise ConfigError(
                    f"layers {pattern!r} never counts: the first matching pattern counts, and all "
                    f"its layers ({', '.join(names)}) match an earlier one: write it first"
                )
            for name in names:
                found.setdefault(name, sparsity)
        return found

    def without(self, names: Iterable[str], reason: str) -> TargetSelection:
        """Return the selection without some targets, given why they are left out."""
        reasons = dict.fromkeys(names, reason)
        targets = tuple(t for t in self.targets if t.name not in reasons)
        if not targets:
            raise ConfigError(f"nothing is left to prune: {', '.join(reasons)}: {reason}")
        entries = tuple(e for e in self._entries if e.names[0] not in reasons)
        return TargetSelection(targets, {**self.reasons, **reasons}, self.total, entries)


def select_targets(
    model: nn.Module,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> TargetSelection:
    """Select the parameters to prune.

    By default the weights of all linear maps: Conv, ConvTranspose and Linear layers, recurrent
    layers and cells, and the projections of MultiheadAttention. Biases, norms and embeddings only
    if a pattern names them by their last part ("emb.weight", "*.bias").

    A pattern is a glob that matches a parameter's full name, its tail from any dot, or a module's
    name likewise ("layer4.*", "fc"); "@first", "@last" and "@depthwise" name those layers.

    Raises:
        ConfigError: For a pattern without match (with the nearest names), or nothing to prune.
        StateError: For layers that are not built yet (lazy), reparametrised by
            `torch.nn.utils.prune`, of an unsupported dtype, or that share memory.
    """
    include, exclude = check_patterns("include", include), check_patterns("exclude", exclude)
    reshard_fsdp(model)  # back to the sharded parameters
    entries = _entries(model)
    reasons: dict[str, str] = dict(_computed_weights(model))
    chosen: list[_Entry] = []
    included = None if include is None else _matches(include, entries, "include", by_name=True)
    excluded = {} if exclude is None else _matches(exclude, entries, "exclude")
    for entry in entries:
        if entry in excluded:
            reasons[entry.names[0]] = f"excluded by {excluded[entry]!r}"
        elif included is not None and entry not in included:
            reasons[entry.names[0]] = "not included"
        elif included is None and not entry.default:
            reasons[entry.names[0]] = f"{entry.kind}: only when included by name"
        elif not is_lazy(entry.parameter) and not entry.parameter.numel():
            reasons[entry.names[0]] = "it has no elements"
        else:
            chosen.append(entry)
    if not chosen:
        raise ConfigError(
            "nothing is left to prune: the model has "
            f"{len(entries)} parameters, none of them selected by include={include!r}, "
            f"exclude={exclude!r}; default are the weights of Conv, ConvTranspose, Linear and "
            "recurrent layers and of MultiheadAttention"
        )
    return _selection(model, entries, chosen, reasons)


def selection_by_name(model: nn.Module, names: Iterable[str]) -> TargetSelection:
    """Select the parameters of exactly these names."""
    wanted = {strip_compile_prefix(name) for name in names}
    entries = _entries(model)
    chosen = [entry for entry in entries if wanted & {*entry.names}]
    reasons = {e.names[0]: "has no channel that can be removed" for e in entries if e not in chosen}
    return _selection(model, entries, chosen, reasons)


def _selection(
    model: nn.Module,
    entries: Sequence[_Entry],
    chosen: Sequence[_Entry],
    reasons: Mapping[str, str],
) -> TargetSelection:
    heads = find_heads(model)
    targets = tuple(_target(entry, heads.get(entry.names[0], "no head")) for entry in chosen)
    built = {e.names[0]: e.parameter for e in entries if not is_lazy(e.parameter)}
    _check_memory_not_shared(built, {target.name for target in targets})
    total = sum(parameter.numel() for parameter in built.values())
    return TargetSelection(targets, reasons, total, tuple(chosen))


def _entries(model: nn.Module) -> list[_Entry]:
    """List every parameter once, in model order, with all its names."""
    # a compiled layer and the layer it wraps have the same name; the wrapped one comes last
    modules = model.named_modules(remove_duplicate=False)
    owners = {strip_compile_prefix(f"{name}.")[:-1]: module for name, module in modules}
    names: dict[int, list[str]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for raw, parameter in model.named_parameters(remove_duplicate=False):
        name = strip_compile_prefix(raw)
        if name not in names.setdefault(id(parameter), []):
            names[id(parameter)].append(name)
        parameters[id(parameter)] = parameter
    return [
        _Entry(tuple(shared), parameters[key], tuple(owners[n.rpartition(".")[0]] for n in shared))
        for key, shared in names.items()
    ]


def _computed_weights(model: nn.Module) -> Iterable[tuple[str, str]]:
    """Yield the weights that are no parameters but computed at each forward, with reasons."""
    for raw, module in model.named_modules():
        name = strip_compile_prefix(f"{raw}.weight".lstrip("."))
        if not isinstance(module, _LAYER_TYPES) or isinstance(
            module._parameters.get("weight"), nn.Parameter
        ):
            continue
        if hasattr(module, "weight_orig") and hasattr(module, "weight_mask"):
            raise StateError(
                f"{name} is masked by torch.nn.utils.prune: make that permanent first with "
                f"torch.nn.utils.prune.remove(module, 'weight')"
            )
        how = "a parametrization" if parametrize.is_parametrized(module) else "its module"
        yield name, f"computed by {how} at each forward, not a parameter"


def _names_last_part(pattern: str, entry: _Entry) -> bool:
    """Whether the pattern spells out the parameter's last part ("*.bias", "emb.weight")."""
    pattern = strip_compile_prefix(pattern)
    rest, _, last = pattern.rpartition(".")
    if last == "weight" and set("*?[") & set(rest):
        return False  # "*.weight" does not include the weights of norms
    return any(
        name.rpartition(".")[2] == last and fnmatchcase(f".{name}", f"*.{pattern}")
        for name in entry.names
    )


def _matches(
    patterns: Iterable[str], entries: Sequence[_Entry], what: str, *, by_name: bool = False
) -> dict[_Entry, str]:
    """Return the matched entries, each with the first pattern that matches it."""
    matched: dict[_Entry, str] = {}
    for pattern in patterns:
        candidates = _match(pattern, entries, what)
        allowed = [
            e for e in candidates if not by_name or e.default or _names_last_part(pattern, e)
        ]
        if not allowed:
            kinds = join_limited(f"{entry.names[0]} ({entry.kind})" for entry in candidates)
            raise ConfigError(
                f"{what} pattern {pattern!r} matches only {kinds}, pruned only when the last "
                f"part of the name is spelt out: write {[e.names[0] for e in candidates]}"
            )
        for entry in allowed:
            matched.setdefault(entry, pattern)
    return matched


def _match(pattern: str, entries: Sequence[_Entry], what: str) -> list[_Entry]:
    layers = [entry for entry in entries if entry.default]
    pattern = strip_compile_prefix(pattern)
    if pattern.startswith("@"):
        if pattern not in _SELECTORS:
            raise ConfigError(f"{what} {pattern!r} is unknown: there are {', '.join(_SELECTORS)}")
        matched = {
            "@first": [e for e in layers if e.owners[0] is layers[0].owners[0]],
            "@last": [e for e in layers if e.owners[0] is layers[-1].owners[0]],
            "@depthwise": [entry for entry in layers if entry.depthwise],
        }[pattern]
    else:
        matched = [
            entry
            for entry in entries
            if any(matches_pattern(name, pattern) for name in entry.names)
        ]
    if not matched:
        names = [name for entry in entries for name in entry.names]
        parts: set[str] = set().union(*map(name_parts, names))
        close = closest_names(pattern, parts) or names[:5]
        raise ConfigError(
            f"{what} pattern {pattern!r} matches no parameter: nearest are {', '.join(close)}"
        )
    return matched


def _target(entry: _Entry, heads: HeadPart | str) -> Target:
    name, parameter = entry.names[0], entry.parameter
    check_has_values(name, parameter)
    if parameter.dtype not in _DTYPES:
        raise StateError(
            f"{name} has dtype {parameter.dtype}: float16, bfloat16, float32 and float64 are "
            "pruned; prune before quantising, or exclude it"
        )
    assert isinstance(parameter, nn.Parameter)
    owner = entry.owners[0]
    input_dim: int | None = None
    if entry.default:
        input_dim = 0 if isinstance(owner, _ConvTransposeNd) else 1
    elif parameter.dim() > 1:
        input_dim = 1
    groups = owner.groups if isinstance(owner, _ConvNd) else 1
    return Target(name, parameter, input_dim, groups, heads)


def _check_memory_not_shared(parameters: Mapping[str, Tensor], pruned: Collection[str]) -> None:
    """Check that pruned parameters share memory neither with others nor within themselves.

    A zero written into one would be a zero in the other, under a mask of its own.
    """
    spans = []
    for name, parameter in parameters.items():
        tensor = local_tensor(parameter.detach())
        if tensor.layout is not torch.strided or tensor.numel() == 0 or not tensor.data_ptr():
            continue
        pairs = list(zip(tensor.shape, tensor.stride(), strict=True))
        if name in pruned and any(size > 1 and stride == 0 for size, stride in pairs):
            raise StateError(
                f"several elements of {name} are the same memory (an expanded tensor), so they "
                f"cannot have masks of their own: write {name}.data = {name}.data.clone()"
            )
        last = sum((size - 1) * stride for size, stride in pairs)
        start = tensor.data_ptr()
        spans.append((str(tensor.device), start, start + last * tensor.itemsize, name, tensor))
    spans.sort(key=lambda span: span[:2])
    for at, (device, _, end, name, tensor) in enumerate(spans):
        for other_device, start, _, other, others in spans[at + 1 :]:
            if other_device != device or start > end:
                break
            if {name, other} & {*pruned} and np.intersect1d(
                _addresses(tensor), _addresses(others)
            ).size:
                first, second = sorted((name, other), key=list(parameters).index)
                raise StateError(
                    f"{first} and {second} share memory but are two parameters, so that masks of "
                    "one would change the other: tie them as one parameter (b.weight = a.weight), "
                    f"use the first in forward (F.linear(x, a.weight.t())), or copy it: "
                    f"{second}.data = {second}.data.clone()"
                )


def _addresses(tensor: Tensor) -> np.ndarray:
    """Return the address of every element."""
    found = np.array([tensor.data_ptr()], dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        found = np.add.outer(found, np.arange(size) * stride * tensor.itemsize)
    return found.ravel()
