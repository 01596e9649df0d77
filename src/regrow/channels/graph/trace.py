# SPDX-License-Identifier: MIT
"""Trace a network with torch.export, and label the channels of its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regrow.channels.graph.interpreter import Interpreter, Site
from regrow.channels.graph.labels import LabelledTensor, Labels, make_axis
from regrow.channels.graph.preserve import no_mask_detection, preserve_state, without_hooks
from regrow.distributed.shard import is_dtensor
from regrow.utils.errors import ConfigError
from regrow.utils.modes import module_mode, no_attention_fastpath, no_garbage_collection
from regrow.utils.names import modules, parameters, tensors


@dataclass
class Trace:
    """Labels of a network, united as its forward pass unites them.

    Attributes:
        values: Labels of each parameter and buffer, by name.
        sites: Calls whose arguments may be sizes.
        used: Parameters and buffers that the graph reads.
    """

    labels: Labels = field(default_factory=Labels)
    values: dict[str, LabelledTensor] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


@no_garbage_collection()
def trace(model: nn.Module, example_input: Any) -> Trace:
    """Label the parameters and buffers of a model, and unite labels as its forward pass does.

    The model is traced in eval mode, and also in training mode if some parameters, such as those
    of auxiliary heads, are used only there. `ConfigError` if `torch.export` cannot trace it.
    """
    sharded = [name for name, tensor in tensors(model).items() if is_dtensor(tensor)]
    if sharded:
        raise ConfigError(
            f"parameters are sharded among ranks ({sharded[0]}, ...), and channels cannot be cut "
            "out of shards: prune channels with strategy='ddp' or on one device first and shard "
            "the smaller model, or prune weights with MagnitudePruning"
        )
    found = Trace()
    for name, tensor in tensors(model).items():
        found.values[name] = _label(found.labels, name, tensor)
    _run(found, model, example_input, training=False)
    if any(name not in found.used for name in parameters(model)):
        _run(found, model, example_input, training=True)
    return found


def _label(labels: Labels, name: str, tensor: Tensor) -> LabelledTensor:
    """Create labels for all positions along all dimensions."""
    if not tensor.is_floating_point():
        return LabelledTensor(tuple(tensor.shape), known=tensor.detach().cpu().clone())
    axes = [
        make_axis(labels.new(name, dim, size), dim, tensor.ndim)
        for dim, size in enumerate(tensor.shape)
        if size > 1
    ]
    return LabelledTensor(tuple(tensor.shape), tuple(axes), weight=True)


def _run(found: Trace, model: nn.Module, example_input: Any, training: bool) -> None:
    with (
        preserve_state(model),
        module_mode(model, training),
        no_attention_fastpath(),
        no_mask_detection(),
        without_hooks(model),
        warnings.catch_warnings(),
    ):
        # such attributes are restored
        warnings.filterwarnings("ignore", ".*assigned during export")
        program = _export(model, example_input)
    names = {id(tensor): name for name, tensor in tensors(model).items()}
    every: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    every |= model.named_parameters(remove_duplicate=False)
    signature = program.graph_signature
    targets = signature.inputs_to_parameters | signature.inputs_to_buffers
    read = {node.name for node in program.graph.nodes if node.users}
    inputs: dict[str, LabelledTensor] = {}
    for placeholder, target in targets.items():
        if target in every:
            name = names[id(every[target])]
            inputs[placeholder] = found.values[name]
            found.used |= {name} if placeholder in read else set()
    for placeholder, target in signature.inputs_to_lifted_tensor_constants.items():
        constant = program.constants[target]
        inputs[placeholder] = LabelledTensor(
            tuple(constant.shape), known=constant.detach().cpu().clone()
        )
    runner = Interpreter(found.labels, found.sites, program.graph_module)
    runner.run(inputs)
    runner.finish()


def _export(model: nn.Module, example_input: Any) -> torch.export.ExportedProgram:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_input, Mapping):
        kwargs = dict(example_input)
    else:
        args = example_input if isinstance(example_input, tuple) else (example_input,)
    try:
        return torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        line = "".join(str(error).splitlines()[:1])
        raise ConfigError(
            f"torch.export cannot trace {type(model).__name__}, so the channels that "
            f"belong together are not known: {type(error).__name__}: {line[:300]}; "
            f"{_advice(model)}"
        ) from error


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
