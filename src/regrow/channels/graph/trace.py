# SPDX-License-Identifier: MIT
"""Trace a network, and label the channels of its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from regrow.channels.graph.interpreter import Interpreter, Site, known_value
from regrow.channels.graph.labels import LabelledTensor, Labels, make_axis
from regrow.channels.graph.preserve import no_mask_detection, preserve_state, without_hooks
from regrow.channels.graph.record import record
from regrow.distributed.shard import is_dtensor
from regrow.utils.errors import ConfigError
from regrow.utils.modes import (
    clear_compiled,
    in_mode,
    module_mode,
    no_attention_fastpath,
    no_garbage_collection,
)
from regrow.utils.names import modules, parameters, tensors

# a graph, its parameters and buffers by placeholder, and its constants
Graph = tuple[fx.GraphModule, dict[str, str], dict[str, LabelledTensor]]


@dataclass
class Trace:
    """Labels of a network, united as its forward pass unites them."""

    labels: Labels = field(default_factory=Labels)
    values: dict[str, LabelledTensor] = field(default_factory=dict)  # of parameters and buffers
    sites: list[Site] = field(default_factory=list)
    used: set[str] = field(default_factory=set)  # parameters and buffers that the graph reads
    heads: tuple[str, ...] = ()  # modules that run the last layers; none if it was exported


@no_garbage_collection()
def trace(model: nn.Module, example_input: Any, *, recorded: bool = False) -> Trace:
    """Label the parameters and buffers of a model, and unite labels as its forward pass does.

    The model is traced in eval mode, and also in training mode if some parameters, such as those
    of auxiliary heads, are used only there. One run on the example is recorded; `torch.export`
    traces it instead where other runs may differ, unless `recorded=True`.
    """
    sharded = [name for name, tensor in tensors(model).items() if is_dtensor(tensor)]
    if sharded:
        raise ConfigError(
            f"parameters are sharded among ranks ({sharded[0]}, ...), and channels cannot be cut "
            "out of shards: prune channels with strategy='ddp' or on one device first and shard "
            "the smaller model, or prune weights with MagnitudePruning"
        )
    found = Trace()
    kernels = _kernels(model)
    for name, tensor in tensors(model).items():
        found.values[name] = _label(
            found.labels, name, tensor, 2 if name in kernels else tensor.ndim
        )
    _run(found, model, example_input, training=False, recorded=recorded)
    if any(name not in found.used for name in parameters(model)):
        _run(found, model, example_input, training=True, recorded=recorded)
    unused = [name for name in parameters(model) if name not in found.used]
    if found.heads and unused:
        raise ConfigError(
            f"{type(model).__name__} was recorded in one run, as torch.export cannot trace it, and "
            f"{unused[0]} was not used ({len(unused)} such parameters): write an example_input "
            "with which its forward uses all parameters, or remove them"
        )
    return found


def _kernels(model: nn.Module) -> set[str]:
    """Return the names of kernels, and of tensors of that shape that they are computed from."""
    return {
        f"{path}.{name}".lstrip(".")
        for path, module in modules(model).items()
        if isinstance(module, _ConvNd)
        for name, tensor in module.named_parameters()
        if tensor.ndim == len(module.kernel_size) + 2
    }


def _label(labels: Labels, name: str, tensor: Tensor, dims: int) -> LabelledTensor:
    """Create labels for all positions along the first dimensions."""
    if not tensor.is_floating_point():
        return known_value(tensor)
    axes = [
        make_axis(labels.new(name, dim, size), dim, tensor.ndim)
        for dim, size in enumerate(tensor.shape[:dims])
        if size > 1
    ]
    return LabelledTensor(tuple(tensor.shape), tuple(axes), weight=True)


def _run(
    found: Trace, model: nn.Module, example_input: Any, *, training: bool, recorded: bool
) -> None:
    with (
        preserve_state(model),
        module_mode(model, training),
        no_attention_fastpath(),
        no_mask_detection(),
        without_hooks(model),
        # torch 2.8 would refuse compiled modules, which newer versions trace as plain ones
        torch._dynamo.config.patch(error_on_nested_fx_trace=False),
        warnings.catch_warnings(),
    ):
        # such attributes are restored
        warnings.filterwarnings("ignore", ".*assigned during export")
        graph, names, inputs = _graph(found, model, example_input, recorded)
    read = {node.name for node in graph.graph.nodes if node.users}
    for placeholder, name in names.items():
        inputs[placeholder] = found.values[name]
        found.used |= {name} if placeholder in read else set()
    Interpreter(found.labels, found.sites, graph).run(inputs)


def _graph(found: Trace, model: nn.Module, example_input: Any, recorded: bool) -> Graph:
    """Record one run; export the network if others may differ, and use the run if that fails."""
    recording, failure = None, None
    try:
        with in_mode(model, model.training):
            clear_compiled(model)  # what was computed before is no part of this run
            recording = record(model, example_input)
    except Exception as error:  # that of torch.export says more
        failure = error
    if recording is None or not (recording.exact or recorded):
        try:
            return _export(model, example_input)
        except ConfigError as refused:
            if recording is None:
                raise refused from failure
    found.heads = tuple(dict.fromkeys((*found.heads, *recording.heads)))
    return recording.module, recording.names, {}


def _export(model: nn.Module, example_input: Any) -> Graph:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_input, Mapping):
        kwargs = dict(example_input)
    else:
        args = example_input if isinstance(example_input, tuple) else (example_input,)
    try:
        with redirect_stderr(StringIO()):  # on failure, it prints the whole graph there
            program = torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        line = "".join(str(error).splitlines()[:1])
        raise ConfigError(
            f"torch.export cannot trace {type(model).__name__}, so the channels that "
            f"belong together are not known: {type(error).__name__}: {line[:300]}; "
            f"{_advice(model)}"
        ) from error
    own = {id(tensor): name for name, tensor in tensors(model).items()}
    every: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    every |= model.named_parameters(remove_duplicate=False)
    signature = program.graph_signature
    targets = signature.inputs_to_parameters | signature.inputs_to_buffers
    names = {name: own[id(every[target])] for name, target in targets.items() if target in every}
    constants = {
        placeholder: known_value(program.constants[target])
        for placeholder, target in signature.inputs_to_lifted_tensor_constants.items()
    }
    return program.graph_module, names, constants


def _advice(model: nn.Module) -> str:
    """What may help a model that cannot be traced."""
    for path, module in modules(model).items():
        if getattr(getattr(module, "config", None), "use_cache", False) is True:
            owner = f"model.{path}" if path else "model"
            return f"outputs include caches of keys and values: set {owner}.config.use_cache=False"
    general = "remove control flow that depends on data from its forward, or check example_input"
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        exporting = "torch.compiler.is_exporting() is true"
        return f"in its forward skip pack_padded_sequence, if any, while {exporting}; {general}"
    return general
