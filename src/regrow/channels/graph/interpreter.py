# SPDX-License-Identifier: MIT
"""Run channel labels through the exported graph of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from regrow.channels.graph.compute_rules import RULES, spatial
from regrow.channels.graph.labels import LabelledTensor, Labels, varying_dims
from regrow.channels.graph.operations import (
    COUNTERS,
    CREATORS,
    ELEMENTWISE,
    IDENTITY,
    JOINS,
    MOVES,
    PADS,
    RECURRENT,
    SPLITS,
)
from regrow.channels.graph.view_rules import bind, join, move, pad, split_dims, unite_pieces
from regrow.utils.names import strip_compile_prefix


@dataclass(frozen=True)
class Site:
    """A call whose arguments may be sizes: a view, a split, a slice, a layer."""

    module: str  # path of the one that calls
    shape: tuple[int, ...]  # of the result, like the labels
    label_axes: tuple[Tensor, ...]


class Interpreter:
    """Interprets one graph on labelled tensors, unites `labels` meanwhile, and adds to `sites`."""

    def __init__(
        self, labels: Labels, sites: list[Site], module: fx.GraphModule, is_region: bool = False
    ) -> None:
        self.labels, self.sites, self.module = labels, sites, module
        self.is_region = is_region  # its output is not the network's
        self.values: dict[fx.Node, Any] = {}
        self.split: list[Tensor] = []
        self.slices: dict[tuple[fx.Node, int], set[tuple[int, int]]] = {}

    def run(self, inputs: Mapping[str, LabelledTensor]) -> Any:
        result = None
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                blank = node.meta.get("val")
                shape = tuple(blank.shape) if isinstance(blank, Tensor) else ()
                self.values[node] = inputs.get(node.name, LabelledTensor(shape))
            elif node.op == "get_attr":
                value = attrgetter(str(node.target))(self.module)
                self.values[node] = known_value(value) if isinstance(value, Tensor) else value
            elif node.op == "output":
                result = self._read(node.args)
                if not self.is_region:
                    self.labels.fix_all(_values(result), "the network's output")
            else:
                self.values[node] = self._call(node)
        # unite labels where the decision needs the whole graph: slices, views
        for (node, dim), found in self.slices.items():
            pieces, whole = sorted(found), self.values[node]
            edges = [0, *(end for _, end in pieces)]
            if edges[-1] == whole.shape[dim] and [start for start, _ in pieces] == edges[:-1]:
                sizes = [end - start for start, end in pieces]
                unite_pieces(self.labels, whole, sizes, dim, "slice")
        split_dims(self.labels, self.split)
        return result

    def _read(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: self.values[node])

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = self._read(node.args), self._read(node.kwargs)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._region(node, args)
        if not isinstance(node.target, torch._ops.OpOverload):  # getitem and arithmetic on sizes
            assert callable(node.target)
            labelled = any(isinstance(value, LabelledTensor) for value in args)
            return LabelledTensor(()) if labelled else node.target(*args, **kwargs)
        name = node.target._schema.name.partition("::")[2]
        name = name[:-1] if name.endswith("_") and not name.startswith("_") else name
        known = self._known(node, name, args, kwargs)
        if known is not None:
            return known
        try:
            result = self._apply(node, name, args, kwargs)
        except (ValueError, IndexError, TypeError, KeyError, RuntimeError) as error:
            # rules do not cover every use of an operation: its arguments are not cut
            lines = str(error).splitlines() or [""]
            result = self._uncovered(node, f"{name}: {lines[0][:100]}", [args, kwargs])
        blank = node.meta.get("val")
        if isinstance(blank, Tensor) and result.shape != tuple(blank.shape):
            result = self._uncovered(node, f"{name}: another shape", [args, kwargs, result])
        result = self._match_outputs(node, result)
        for value in _values(result):
            self.split.extend(axis for axis in value.label_axes if len(varying_dims(axis)) > 1)
        self._add_site(node, name, result)
        return result

    def _uncovered(self, node: fx.Node, use: str, values: Any) -> Any:
        self.labels.fix_all(_values(values), f"no rule covers this use of {use}")
        blank = node.meta.get("val")
        return LabelledTensor(tuple(blank.shape)) if isinstance(blank, Tensor) else []

    def _apply(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> Any:
        assert isinstance(node.target, torch._ops.OpOverload)
        labels, blank = self.labels, node.meta.get("val")
        if blank is None:  # an assertion has no result
            return None
        first = blank[0] if isinstance(blank, tuple | list) else blank
        if not isinstance(first, Tensor):  # a Python number, as of `item`, has no channels
            known = args[0].known if isinstance(args[0], LabelledTensor) else None
            return LabelledTensor(()) if known is None else known.item()
        shape = tuple(first.shape)
        if name in IDENTITY:
            return args[0]
        if name in CREATORS or name in COUNTERS:
            return LabelledTensor(shape, resizable=name in CREATORS)
        if name in MOVES and isinstance(args[0], LabelledTensor):
            return self._moved(node, name, args, kwargs)
        if name in MOVES:  # repeat_interleave of counts
            return LabelledTensor(shape)
        if name in JOINS:
            return self._joined(name, *args, **kwargs)
        if name in PADS and (name != "pad" or len(args) < 3 or args[2] == "constant"):
            return pad(labels, args[0], args[1])
        if name.endswith(("_pad1d", "_pad2d", "_pad3d")) or name in PADS:
            return spatial(labels, {"self": args[0]}, shape)
        if name in RULES:
            return RULES[name](labels, bind(node.target, args, kwargs), shape)
        tensors = [*_values(args), *_values(kwargs)]
        if torch.Tag.pointwise in node.target.tags or name in ELEMENTWISE:
            result = labels.broadcast(tensors, shape, name)
            if node.target._schema.is_mutable:  # labels written into a tensor must be its own
                for axis in result.label_axes:
                    if any(not tensors[0].varies(dim) for dim in varying_dims(axis)):
                        labels.fix(axis, f"{name} into a tensor of fixed length")
            return result
        labels.fix_all(tensors, f"no rule for {name}")
        return LabelledTensor(shape)

    def _moved(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> Any:
        bound = bind(node.target, args, kwargs)
        result = move(self.labels, name, node.target, args, kwargs)
        dim = bound.get("dim", bound.get("axis", 0))
        if name in SPLITS:
            dim %= args[0].ndim
            unite_pieces(self.labels, args[0], [p.shape[dim] for p in result], dim, name)
        if name in ("slice", "narrow") and args[0].varies(dim % args[0].ndim):
            dim %= args[0].ndim
            start = bound["start"] or 0
            start = start if start >= 0 else start + args[0].shape[dim]
            source = node.args[0]
            assert isinstance(source, fx.Node)
            piece = (start, start + result.shape[dim])
            self.slices.setdefault((source, dim), set()).add(piece)
        return result

    def _joined(self, name: str, values: Any, dim: int = 0) -> LabelledTensor:
        values = [*values]
        if name == "stack":
            dim %= values[0].ndim + 1
            values = [_unsqueeze(value, dim) for value in values]
        return join(self.labels, values, dim, name)

    def _known(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> LabelledTensor | None:
        """Compute an integer operation whose arguments are all known, such as an index."""
        blank = node.meta.get("val")
        values = [*_values(args), *_values(kwargs)]
        if not isinstance(blank, Tensor) or blank.is_floating_point() or blank.is_complex():
            return None
        if any(value.known is None for value in values):
            return None
        assert isinstance(node.target, torch._ops.OpOverload)
        if torch.Tag.nondeterministic_seeded in node.target.tags:  # random, new on each call
            return None
        if not values and blank.numel() > 2**20:
            return None
        positional = [_numbers(argument) for argument in args]
        named = {key: _numbers(argument) for key, argument in kwargs.items() if key != "device"}
        result: Tensor = node.target(*positional, **named)
        resizable = not values and name in CREATORS
        return LabelledTensor(tuple(result.shape), resizable=resizable, known=result)

    def _region(self, node: fx.Node, args: Any) -> Any:
        """Run the graph of a region, such as that of autocast, in place."""
        graph = next((a for a in args if isinstance(a, fx.GraphModule)), None)
        if graph is None or sum(isinstance(a, fx.GraphModule) for a in args) > 1:
            self.labels.fix_all(_values(args), f"no rule for {node.target}")
            single = isinstance(node.meta["val"], Tensor)
            return self._match_outputs(node, LabelledTensor(()) if single else [])
        given = args[list(args).index(graph) + 1 :]
        names = [n.name for n in graph.graph.nodes if n.op == "placeholder"]
        inner = Interpreter(self.labels, self.sites, graph, is_region=True)
        result = inner.run(dict(zip(names, given, strict=True)))
        self.split.extend(inner.split)
        return result[0]

    def _match_outputs(self, node: fx.Node, result: Any) -> Any:
        """Return as many values as the operation returns, each of the right shape."""
        blank = node.meta.get("val")
        if not isinstance(blank, tuple | list):
            return result
        if isinstance(result, list) and len(result) == len(blank):
            return result
        first = result[0] if isinstance(result, list) and result else result
        return [
            first
            if isinstance(first, LabelledTensor) and first.shape == tuple(each.shape)
            else LabelledTensor(tuple(each.shape))
            for each in blank
        ]

    def _add_site(self, node: fx.Node, name: str, result: Any) -> None:
        """Record a call whose arguments may be sizes that vary."""
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        if name in RECURRENT:  # the caller makes its first state
            callers = stack[-2:]
        elif name in MOVES or "norm" in name or "conv" in name:
            callers = stack[-1:]
        else:
            return
        for module in (strip_compile_prefix(f"{path}.")[:-1] for path in callers):
            for value in _values(result):
                if value.label_axes:
                    self.sites.append(Site(module, value.shape, value.label_axes))


def _values(argument: Any) -> list[LabelledTensor]:
    """Return all labelled tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(argument) if isinstance(leaf, LabelledTensor)]


def _numbers(argument: Any) -> Any:
    return tree_map_only(LabelledTensor, lambda value: value.known, argument)


def known_value(tensor: Tensor) -> LabelledTensor:
    """Return a tensor that does not depend on the input, with its values and without labels."""
    return LabelledTensor(tuple(tensor.shape), known=tensor.detach().cpu().clone())


def _unsqueeze(value: LabelledTensor, dim: int) -> LabelledTensor:
    shape = (*value.shape[:dim], 1, *value.shape[dim:])
    return replace(value, shape=shape, label_axes=tuple(a.unsqueeze(dim) for a in value.label_axes))
