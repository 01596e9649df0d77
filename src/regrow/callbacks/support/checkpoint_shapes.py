# SPDX-License-Identifier: MIT
"""Load checkpoints of modules whose channels were cut; find example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from regrow.channels.cut.channel_cut import ChannelCut
from regrow.io.checkpoints import KEY
from regrow.utils.batches import is_example_list
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import lightning_classes, pl
from regrow.utils.names import tensors


class ChannelsMixin:
    """Mixin for a LightningModule: `load_from_checkpoint` builds the cut network.

    Put it before the module's class. The new module is cut like the checkpoint's before weights are
    loaded; checkpoints of uncut modules load as always.

    Example:
        >>> class Net(ChannelsMixin, pl.LightningModule):
        ...     pass
        >>> Net.load_from_checkpoint  # doctest: +ELLIPSIS
        <...load_from_checkpoint...>
    """

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Cut the module; Lightning calls this before it loads the weights."""
        assert isinstance(self, torch.nn.Module)
        fit_shapes(self, checkpoint)
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]


class ShapeHooks:
    """Replace a module's checkpoint hooks for the duration of a fit or a test.

    Lightning calls `on_load_checkpoint` of the module before it loads the weights, and of callbacks
    only after; for a checkpoint of weights alone it does not call callbacks at all.
    """

    def __init__(self) -> None:
        self._module: pl.LightningModule | None = None

    def install(
        self,
        module: pl.LightningModule,
        load: Callable[[pl.LightningModule, Mapping[str, Any]], None],
        save: Callable[[dict[str, Any]], None],
    ) -> None:
        """Call `load(module, checkpoint)` before weights are loaded, `save(checkpoint)` on saving.

        The module's own hooks are called too.
        """
        self.remove()
        self._module = module
        loading, saving = module.on_load_checkpoint, module.on_save_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            load(module, checkpoint)
            loading(checkpoint)

        def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
            save(checkpoint)
            saving(checkpoint)

        module.__dict__["on_load_checkpoint"] = on_load_checkpoint
        module.__dict__["on_save_checkpoint"] = on_save_checkpoint

    def remove(self) -> None:
        """Restore the module's own hooks."""
        if self._module is not None:
            self._module.__dict__.pop("on_load_checkpoint", None)
            self._module.__dict__.pop("on_save_checkpoint", None)
            self._module = None


def fit_shapes(module: torch.nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Cut a new module to the shapes of a checkpoint, if it has a plan and other shapes."""
    state = checkpoint.get(KEY)
    if state is None:
        return
    plan, saved = ChannelCut.from_state(state), checkpoint.get("state_dict", {})
    own = tensors(module)
    differ = (own[n].shape != saved[n].shape for n in plan.kept if n in saved and n in own)
    if any(differ) or not plan.kept.keys() <= own.keys():
        plan.apply(module)


def find_example(trainer: pl.Trainer | None, module: torch.nn.Module, given: Any) -> Any:
    """The input for tracing: the given one, the module's own, or the first training batch."""
    lightning_module = isinstance(module, lightning_classes("LightningModule"))
    own: Any = module.example_input_array if lightning_module else None
    if given is not None or own is not None:
        return own if given is None else given
    if trainer is not None and trainer.state.fn == "fit":
        for inputs in training_inputs(trainer, 1):
            return inputs
    raise ConfigError(
        "channels are found by tracing the network, which needs an input: write "
        "example_input=torch.zeros(2, 3, 224, 224), or set example_input_array in the module"
    )


def training_inputs(trainer: pl.Trainer, count: int) -> list[Any]:
    """The inputs of the first training batches that are tensors or `(inputs, ...)`.

    They may also be lists of images, one for each example. Random generators and the loader's
    position are restored.
    """
    source = trainer.fit_loop._data_source
    loader = source.dataloader() if source.is_defined() else None
    if loader is None:
        return []
    position = loader.state_dict() if hasattr(loader, "state_dict") else None
    owners = [loader, getattr(loader, "sampler", None)]
    own = [g for o in owners if isinstance(g := getattr(o, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in own]
    try:
        with pl.utilities.seed.isolate_rng(include_cuda=False):
            batches = list(islice(iter(loader), count))
    finally:
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)
        if position is not None:
            loader.load_state_dict(position)
    inputs = [b[0] if isinstance(b, list | tuple) and b else b for b in batches]
    listed = [[*one] if isinstance(one, tuple) else one for one in inputs]
    return [one for one in listed if isinstance(one, Tensor) or (one and is_example_list(one))]
