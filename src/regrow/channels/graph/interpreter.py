# SPDX-License-Identifier: MIT
"""Runs labels through the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from regrow.channels.graph.compute_rules import RULES, spatial
from regrow.channels.graph.labels import LabelledTensor, Labels, varying
from regrow.channels.graph.operations import (
    COUNTERS,
    CREATORS,
    ELEMENTWISE,
    JOINS,
    MOVES,
    PADS,
    SAME,
    SPLITS,
)
from regrow.channels.graph.view_rules import bind, join, move, pad, split_dims, tie_pieces
from regrow.utils.names import strip_compile_prefix


@dataclass(frozen=True)
class Site:
    """A place in the code that names sizes: a view, a split, a slice.

    Attributes:
        module: The module whose forward holds it.
        operation: Its name.
        shape: The shape that comes out, or the sizes of its pieces.
        slots: The labels that come out.
    """

    module: str
    operation: str
    shape: tuple[int, ...]
    slots: tuple[Tensor, ...]


class Interpreter:
    """Interprets one graph on values.

    Args:
        labels: The labels that are united on the way.
        sites: Takes the places that name sizes.
        module: The graph.
    """

    def __init__(self, labels: Labels, sites: list[Site], module: fx.GraphModule) -> None:
        self.labels, self.sites, self.module = labels, sites, module
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
                self.values[node] = self._attribute(node)
            elif node.op == "output":
                result = self._read(node.args)
                self.labels.pin_all(_values(result), "the network's output")
            else:
                self.values[node] = self._call(node)
        return result

    def finish(self) -> None:
        """What can be said only of the whole graph."""
        for (node, dim), found in self.slices.items():
            pieces, whole = sorted(found), self.values[node]
            edges = [0, *(end for _, end in pieces)]
            if edges[-1] == whole.shape[dim] and [start for start, _ in pieces] == edges[:-1]:
                sizes = [end - start for start, end in pieces]
                tie_pieces(self.labels, whole, sizes, dim, "slice")
        split_dims(self.labels, self.split)

    def _attribute(self, node: fx.Node) -> Any:
        held: Any = self.module
        for part in str(node.target).split("."):
            held = getattr(held, part)
        return (
            LabelledTensor(tuple(held.shape), real=held.clone())
            if isinstance(held, Tensor)
            else held
        )

    def _read(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: self.values[node])

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = self._read(node.args), self._read(node.kwargs)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._region(node, args)
        if not isinstance(node.target, torch._ops.OpOverload):  # getitem and arithmetic on sizes
            return self._python(node, args, kwargs)
        name = node.target._schema.name.partition("::")[2]
        name = name[:-1] if name.endswith("_") and not name.startswith("_") else name
        known = self._known(node, name, args, kwargs)
        if known is not None:
            return known
        try:
            result = self._apply(node, name, args, kwargs)
        except (ValueError, IndexError, TypeError, KeyError, RuntimeError) as error:
            # no rule foresees every use of an operation: what it touches stays as it is
            words = str(error).splitlines() or [""]
            result = self._uncovered(node, f"{name}: {words[0][:100]}", [args, kwargs])
        blank = node.meta.get("val")
        if isinstance(blank, Tensor) and result.shape != tuple(blank.shape):
            result = self._uncovered(node, f"{name}: another shape", [args, kwargs, result])
        result = self._shapes(node, result)
        for value in _values(result):
            self.split.extend(slot for slot in value.label_axes if len(varying(slot)) > 1)
        self._site(node, name, args, result)
        return result

    def _uncovered(self, node: fx.Node, words: str, values: Any) -> Any:
        self.labels.pin_all(_values(values), f"no rule covers this use of {words}")
        blank = node.meta.get("val")
        return LabelledTensor(tuple(blank.shape)) if isinstance(blank, Tensor) else []

    def _apply(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> Any:
        assert isinstance(node.target, torch._ops.OpOverload)
        labels, blank = self.labels, node.meta.get("val")
        if blank is None:  # an assertion: nothing comes out
            return None
        shape = tuple((blank[0] if isinstance(blank, tuple | list) else blank).shape)
        if name in SAME:
            return args[0]
        if name in CREATORS or name in COUNTERS:
            return LabelledTensor(shape, free=name in CREATORS)
        if name in MOVES:
            if not isinstance(args[0], LabelledTensor):  # repeat_interleave of counts
                return LabelledTensor(shape)
            return self._moved(node, name, args, kwargs)
        if name in JOINS:
            return self._joined(name, *args, **kwargs)
        if name in PADS and (name != "pad" or len(args) < 3 or args[2] == "constant"):
            return pad(labels, args[0], args[1], name)
        if name.endswith(("_pad1d", "_pad2d", "_pad3d")) or name in PADS:
            return spatial(labels, {"self": args[0]}, shape)
        if name in RULES:
            return RULES[name](labels, bind(node.target, args, kwargs), shape)
        tensors = [*_values(args), *_values(kwargs)]
        if torch.Tag.pointwise in node.target.tags or name in ELEMENTWISE:
            made = labels.broadcast(tensors, shape, name)
            if node.target._schema.is_mutable:
                self._written(tensors[0], made, name)
            return made
        labels.pin_all(tensors, f"no rule for {name}")
        return LabelledTensor(shape)

    def _written(self, into: LabelledTensor, made: LabelledTensor, name: str) -> None:
        """What is written into a part of a tensor must have met the labels of the whole."""
        for slot in made.label_axes:
            if any(not into.varies(dim) for dim in varying(slot)):
                self.labels.pin(slot, f"{name} into a tensor of fixed length")

    def _moved(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> Any:
        bound = bind(node.target, args, kwargs)
        result = move(self.labels, name, node.target, args, kwargs)
        dim = bound.get("dim", bound.get("axis", 0))
        if name in SPLITS:
            dim %= args[0].ndim
            tie_pieces(self.labels, args[0], [p.shape[dim] for p in result], dim, name)
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
            values = [_widened(value, dim) for value in values]
        return join(self.labels, values, dim, name)

    def _known(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> LabelledTensor | None:
        """The numbers of an operation on known whole numbers: an index in the making."""
        blank = node.meta.get("val")
        values = [*_values(args), *_values(kwargs)]
        if not isinstance(blank, Tensor) or blank.is_floating_point() or blank.is_complex():
            return None
        if any(value.real is None for value in values):
            return None
        assert isinstance(node.target, torch._ops.OpOverload)
        if torch.Tag.nondeterministic_seeded in node.target.tags:  # drawn by lot, anew each time
            return None
        if not values and blank.numel() > 2**20:
            return None
        reals = [_reals(argument) for argument in args]
        named = {key: _reals(argument) for key, argument in kwargs.items() if key != "device"}
        made: Tensor = node.target(*reals, **named)
        return LabelledTensor(tuple(made.shape), free=not values and name in CREATORS, real=made)

    def _python(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target = node.target
        assert callable(target)
        if any(isinstance(value, LabelledTensor) for value in args):
            return LabelledTensor(())
        return target(*args, **kwargs)

    def _region(self, node: fx.Node, args: Any) -> Any:
        """A region such as autocast's: its graph is run as if it stood here."""
        graph = next((a for a in args if isinstance(a, fx.GraphModule)), None)
        if graph is None or sum(isinstance(a, fx.GraphModule) for a in args) > 1:
            self.labels.pin_all(_values(args), f"no rule for {node.target}")
            blank = node.meta["val"]
            return self._shapes(node, LabelledTensor(()) if isinstance(blank, Tensor) else [])
        given = args[list(args).index(graph) + 1 :]
        names = [n.name for n in graph.graph.nodes if n.op == "placeholder"]
        inner = _Region(self.labels, self.sites, graph)
        result = inner.run(dict(zip(names, given, strict=True)))
        inner.finish()
        self.split.extend(inner.split)
        return result[0]

    def _shapes(self, node: fx.Node, result: Any) -> Any:
        """As many values as the operation returns, each of its true shape."""
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

    def _site(self, node: fx.Node, name: str, args: Any, result: Any) -> None:
        """Remembers where the code names sizes that vary."""
        stack = node.meta.get("nn_module_stack") or {}
        if not stack or (name not in MOVES and "norm" not in name and "conv" not in name):
            return
        module = strip_compile_prefix(f"{[*stack.values()][-1][0]}.")[:-1]
        for value in _values(result):
            if value.label_axes:
                self.sites.append(Site(module, name, value.shape, value.label_axes))


class _Region(Interpreter):
    """A graph within a graph: its output is not the network's."""

    def run(self, inputs: Mapping[str, LabelledTensor]) -> Any:
        result = None
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = inputs[node.name]
            elif node.op == "output":
                result = self._read(node.args)
            elif node.op == "get_attr":
                self.values[node] = self._attribute(node)
            else:
                self.values[node] = self._call(node)
        return result


def _values(argument: Any) -> list[LabelledTensor]:
    """All values in a nest of arguments."""
    if isinstance(argument, LabelledTensor):
        return [argument]
    if isinstance(argument, list | tuple):
        return [value for item in argument for value in _values(item)]
    if isinstance(argument, dict):
        return [value for item in argument.values() for value in _values(item)]
    return []


def _reals(argument: Any) -> Any:
    if isinstance(argument, LabelledTensor):
        return argument.real
    if isinstance(argument, list | tuple):
        return [_reals(item) for item in argument]
    return argument


def _widened(value: LabelledTensor, dim: int) -> LabelledTensor:
    shape = (*value.shape[:dim], 1, *value.shape[dim:])
    return replace(
        value, shape=shape, label_axes=tuple(slot.unsqueeze(dim) for slot in value.label_axes)
    )
