# SPDX-License-Identifier: MIT
"""Record the operations of one run of a network, which takes a part of the time of `torch.export`.

If nothing but values depends on data, every run has these operations. Detectors keep as many boxes
as the data decides; their graph is that of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from regrow.channels.graph.operations import CHOICES, OVERFLOW_CHECKS, POOLS, PRODUCTS
from regrow.utils.batches import bound_forward, device_of, is_list_of_dictionaries
from regrow.utils.names import modules, tensors

_PLAIN = (Tensor, bool, int, float, str, type(None))
_MASKS = (torch.bool, torch.uint8)  # types of indices that choose as many as are true


@dataclass
class Recording:
    """The graph of one run; results of operations are in `meta["val"]`, without data."""

    module: fx.GraphModule
    names: dict[str, str]  # parameters and buffers, by the name of their placeholder
    exact: bool  # every run has these operations: nothing but values depends on data
    heads: tuple[str, ...]  # modules that run the `last_layers`, if it is not exact


class DataDecides(Exception):
    """A Python number was made from data before a layer: another run may take another branch.

    Detectors read numbers after their last layer, such as the sizes of boxes to paste masks into.
    Targets, lists of dictionaries, are no such data: detectors check the boxes that they are given.
    """


def record(model: nn.Module, example_input: Any) -> Recording:
    """Run a model once in its present mode, and return the graph of its operations.

    Sizes are those of the run: results whose length depends on data have the length that they had.
    """
    device = device_of(model)
    example_input = tree_map_only(Tensor, lambda tensor: tensor.to(device), example_input)
    recorder = Recorder(model, example_input)
    run = bound_forward(model, example_input)
    # in inference mode a layer is one operation
    with torch.inference_mode(), recorder.follow(model), recorder:
        output = run()
    made = tree_leaves(output)
    if strange := [type(leaf).__name__ for leaf in made if not isinstance(leaf, _PLAIN)]:
        raise TypeError(f"outputs include objects that may hold tensors: {strange[0]}")
    leaves = [recorder.node(leaf) for leaf in made if isinstance(leaf, Tensor)]
    last = [] if recorder.exact else last_layers(recorder.graph, recorder.known)
    recorder.graph.output((*leaves, *last))
    heads = dict.fromkeys([*node.meta["nn_module_stack"]][-1] for node in last)
    module = fx.GraphModule(recorder.constants, recorder.graph)
    return Recording(module, recorder.names, recorder.exact, tuple(heads))


def last_layers(graph: fx.Graph, known: Container[fx.Node] = ()) -> list[fx.Node]:
    """Return the products whose results reach no other, except by a choice that data makes.

    A detector chooses among boxes by their scores: what its layers give before is its output. A
    choice by an index of `known` nodes, which do not depend on data, is none.
    """
    read = set[fx.Node]()
    last = []
    for node in reversed(graph.nodes):
        if node.op != "call_function":
            continue
        name, sources = operator_name(node.target), node.all_input_nodes
        product = _is_product(name)
        if product and node not in read:
            last.append(node)
        if product or (node in read and not _is_choice(name, sources, known)):
            read.update(sources[:1] if name in POOLS else sources)
    return last[::-1]


def _is_product(name: str) -> bool:
    return name in PRODUCTS or "conv" in name


def _is_choice(name: str, sources: Sequence[fx.Node], known: Container[fx.Node]) -> bool:
    if name == "where":  # of one argument it lists positions
        return len(sources) == 1
    return name in CHOICES and not (sources[1:] and all(node in known for node in sources[1:]))


def operator_name(target: Any) -> str:
    """Return the name of an operation without its namespace and overload."""
    schema = getattr(target, "_schema", None)
    return schema.name.partition("::")[2] if schema else str(target)


def _depends_on_data(func: Any, args: Sequence[Any]) -> bool:
    """Whether a length of the result depends on data, or data leave the graph, as by `numpy()`."""
    name, rest = operator_name(func), tree_leaves(args[1:])
    if getattr(func, "namespace", "") != "aten" or name in ("resolve_conj", "resolve_neg"):
        return True
    if name in ("repeat_interleave", "tensor_split"):
        return not args[1:] or isinstance(args[1], Tensor)
    if name == "where":
        return not rest
    chosen = any(isinstance(index, Tensor) and index.dtype in _MASKS for index in rest)
    return torch.Tag.dynamic_output_shape in func.tags and (name != "index" or chosen)


class Recorder(TorchDispatchMode):
    """Adds each operation to `graph`, with the module that ran it."""

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.constants = fx.Graph(), nn.Module()
        self.names: dict[str, str] = {}
        self._path = [""]
        self._nodes = WeakTensorKeyDictionary()
        self.known = set[fx.Node]()  # values of weights, constants and targets
        self.exact = True
        self._layers = False  # whether one ran
        self._read = ""  # where the first number was made from data
        self._own = {id(tensor): name for name, tensor in tensors(model).items()}
        lists = tree_leaves(example_input, is_leaf=is_list_of_dictionaries)
        targets = [tree_leaves(each) for each in lists if isinstance(each, list)]
        self._targets = {id(leaf) for leaves in targets for leaf in leaves}
        self._inputs = {id(leaf) for leaf in lists} | self._targets

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, operator_name(func)
        if _is_product(name):
            self._layers = True
            if self._read:
                raise DataDecides(self._read)
        given = tree_map_only(Tensor, self.node, (args, kwargs))
        known = name in OVERFLOW_CHECKS or all(
            node in self.known for node in tree_leaves(given) if isinstance(node, fx.Node)
        )
        self.exact &= known or not _depends_on_data(func, args)
        out = func(*args, **kwargs)
        if out is not None and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            if not known:
                self.exact, self._read = False, self._read or f"{name} in {self._path[-1]}"
                if not self._layers:  # which ones run may depend on it
                    raise DataDecides(self._read)
            return out
        node = self.graph.call_function(func, *given)
        node.meta["val"] = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), out)
        node.meta["nn_module_stack"] = {path: (path, None) for path in self._path}
        self._add(node, out, known)
        return out

    def node(self, tensor: Tensor) -> fx.Node:
        """Return the node of a tensor; a new one is a parameter, an input or a constant."""
        if tensor in self._nodes:
            found: fx.Node = self._nodes[tensor]
            return found
        own = self._own.get(id(tensor))
        if own is None and id(tensor) not in self._inputs:
            name = f"constant_{len(self.graph.nodes)}"
            self.constants.register_buffer(name, tensor.detach().clone())
            node = self.graph.get_attr(name)
            self.known.add(node)
        else:
            node = self.graph.placeholder(f"tensor_{len(self.graph.nodes)}")
            if own is not None:
                self.names[node.name] = own
            if own is not None or id(tensor) in self._targets:
                self.known.add(node)
        node.meta["val"] = tensor.to("meta")
        self._nodes[tensor] = node
        return node

    def _add(self, node: fx.Node, out: Any, known: bool) -> None:
        """Remember the node of each tensor of a result."""
        if known:
            self.known.add(node)
        if isinstance(out, Tensor):
            self._nodes[out] = node
        elif isinstance(out, tuple | list):
            for index, item in enumerate(out):
                if isinstance(item, Tensor):
                    piece = self.graph.call_function(getitem, (node, index))
                    piece.meta["val"] = item.to("meta")
                    self._add(piece, item, known)

    @contextmanager
    def follow(self, model: nn.Module) -> Iterator[None]:
        """Keep the path of the module that runs."""

        def enter(path: str) -> Callable[..., None]:
            return lambda *_: self._path.append(path)

        def leave(*_: Any) -> None:
            self._path.pop()

        with ExitStack() as hooked:
            for path, module in modules(model).items():
                hooked.enter_context(module.register_forward_pre_hook(enter(path)))
                hooked.enter_context(module.register_forward_hook(leave, always_call=True))
            yield
