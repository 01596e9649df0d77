# SPDX-License-Identifier: MIT
"""Activations: scores of channels by what the layers that read them receive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from regrow.channels.graph.groups import Group, Place
from regrow.channels.graph.preserve import preserve_state
from regrow.utils.batches import bound_forward
from regrow.utils.errors import ConfigError, StateError, check_choice
from regrow.utils.modes import in_mode, no_attention_fastpath
from regrow.utils.names import parameters

_ATEN = torch.ops.aten
MEASURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "activation": torch.abs,
    "apoz": lambda x: x != 0,
}


class Activations:
    """A criterion that ranks channels by their activations on data, where layers read them.

    Args:
        measure: "activation", the mean of |a| divided by the group's mean (Molchanov et al. 2017,
            arXiv 1611.06440), or "apoz", the fraction of activations that are not zero, which is
            1 - APoZ, for networks with ReLU (Hu et al. 2016, arXiv 1607.03250).

    Example:
        >>> from regrow.channels import prune
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, 0], [0, 1]])), net[0].bias.data.zero_()
        >>> seen = Activations("apoz").record(net, [torch.tensor([[1.0, -1], [2, -2], [3, 3]])])
        >>> [round(rate, 2) for rate in seen.means["2.weight", 1].tolist()]
        [1.0, 0.33]
        >>> prune(net, torch.zeros(2, 2), 0.5, criterion=seen, round_to=1).removed
        {'0': 1}
    """

    def __init__(self, measure: str = "activation") -> None:
        self.measure = self.__name__ = check_choice("measure", measure, MEASURES)
        self.sums: dict[Place, Tensor] = {}
        self.counts: dict[Place, float] = {}

    @property
    def means(self) -> dict[Place, Tensor]:
        """The mean of each feature, by weight and the dimension of its inputs."""
        return {place: total / self.counts[place] for place, total in self.sums.items()}

    def record(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> Activations:
        """Run a model in eval mode on batches, and replace what was recorded before.

        Args:
            model: The model; as before afterwards.
            batches: Inputs; a tuple holds positional arguments, a dict keyword arguments.
            total: Returns the sum of a tensor over all ranks; None: there is one.
        """
        recorder = _Recorder(parameters(model), MEASURES[self.measure])
        with in_mode(model, training=False), preserve_state(model), no_attention_fastpath():
            for batch in batches:
                run = bound_forward(model, batch)
                with recorder:
                    run()
        if not recorder.sums:
            raise ConfigError(
                "no activations were recorded: pass one batch of inputs or more, on which the "
                "model runs a linear layer or a convolution"
            )
        add = total or (lambda values: values)
        sums, counts = recorder.sums, recorder.counts
        self.sums = {place: add(values).double().cpu() for place, values in sums.items()}
        self.counts = {p: float(add(sums[p].new_tensor(count))) for p, count in counts.items()}
        return self

    def __call__(self, group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
        means = self.means
        known = [place for place in group.members if place in means]
        if not known:
            raise StateError(
                f"no activations of {group.name} were recorded: "
                + ("exclude it, or choose 'l2'" if means else "call record(model, batches) first")
            )
        channels = torch.cat([group.members[place] for place in known])
        values = torch.cat([means[place] for place in known])
        if len(channels) != len(values):
            raise StateError(
                f"the activations of {group.name} were recorded in another shape: call "
                "record(model, batches) again"
            )
        used = channels >= 0
        scores = torch.zeros(group.size, dtype=torch.float64)
        scores.index_add_(0, channels[used], values[used])
        scores /= torch.bincount(channels[used], minlength=group.size).clamp_min(1)
        if self.measure == "apoz" or not bool((scores > 0).any()):
            return scores
        return scores / scores[scores > 0].mean()

    def state_dict(self) -> dict[str, list[tuple[str, int, Tensor, float]]]:
        """Return what was recorded."""
        items = self.sums.items()
        return {"recorded": [(*place, total, self.counts[place]) for place, total in items]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rows = state["recorded"]
        self.sums = {(name, dim): total for name, dim, total, _ in rows}
        self.counts = {(name, dim): count for name, dim, _, count in rows}


class _Recorder(TorchDispatchMode):
    """Sums a function of the inputs of each weight, also in functions: it is known by storage."""

    def __init__(self, weights: Mapping[str, Tensor], measure: Callable[[Tensor], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {w.untyped_storage(): (name, w) for name, w in weights.items()}
        self._measure = measure
        self.sums: dict[Place, Tensor] = {}
        self.counts: dict[Place, float] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = getattr(func, "overloadpacket", func)
        if packet in (_ATEN.mm, _ATEN.addmm):
            self._product(*args[-2:])
        elif packet == _ATEN.convolution:
            self._convolution(args[0], args[1], transposed=args[6], groups=args[8])
        return func(*args, **(kwargs or {}))

    def _product(self, x: Tensor, factor: Tensor) -> None:
        name, weight = self._names.get(factor.untyped_storage(), ("", factor))
        dims = [d for d in range(weight.ndim) if weight.stride(d) == factor.stride(0)]
        if name and dims and weight.shape[dims[0]] == x.shape[1]:
            self._add((name, dims[0]), x)

    def _convolution(self, x: Tensor, factor: Tensor, transposed: bool, groups: int) -> None:
        name, weight = self._names.get(factor.untyped_storage(), ("", factor))
        depthwise = groups == x.shape[1] == factor.shape[0]
        if name and weight.shape == factor.shape and (groups == 1 or depthwise):
            dim = 0 if transposed or groups > 1 else 1
            self._add((name, dim), x.movedim(1, -1).reshape(-1, x.shape[1]))

    def _add(self, place: Place, rows: Tensor) -> None:
        values = self._measure(rows)
        values = values.sum(0, dtype=torch.promote_types(values.dtype, torch.float32))
        self.sums[place] = values + cast("Tensor", self.sums.get(place, 0.0))
        self.counts[place] = self.counts.get(place, 0.0) + len(rows)
