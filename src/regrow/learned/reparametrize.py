# SPDX-License-Identifier: MIT
"""Effective weights in the parameters, dense ones beside.

The parameters hold effective weights f(w, s). Before an optimizer step the gradient that arrived at
them is carried back to w and s by a vector-Jacobian product of f, and the dense w go in; after it
they come out again, updated, and effective weights go in. So everybody else sees effective weights,
and the module has no new keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.learned.methods import MaskContext, MaskMethod
from regrow.utils.errors import StateError
from regrow.utils.optimizers import trained_parameters
from regrow.utils.random import make_generator


class Reparametrization:
    """Dense weights and scores beside the parameters of which they make the values.

    Args:
        rule: The method: f.
        train_weights: Whether the dense weights are trained too.
        seed: For the first scores and the noise, with the step and the parameter's name.

    Attributes:
        parameters: By name; they are changed in place, never replaced.
        dense: Their dense weights, while there are scores.
        marks: Their scores.
        progress: How much of the learning has passed.
        choose: Gives the masks of the highest scores, for rules that choose.

    Example:
        >>> from regrow.learned.methods import STR
        >>> weight = nn.Parameter(torch.tensor([2.0, -0.25]))
        >>> effective = Reparametrization(STR(first=0.0))
        >>> effective.attach({"w": weight}); effective.begin(); weight.tolist()
        [1.5, 0.0]
        >>> sgd = torch.optim.SGD([weight], lr=0.1)
        >>> weight.sum().backward()
        >>> effective.backward_to_dense(sgd); weight.tolist(), weight.grad.tolist()  # before a step
        ([2.0, -0.25], [1.0, 0.0])
    """

    def __init__(self, rule: MaskMethod, *, train_weights: bool = True, seed: int = 0) -> None:
        self.method = rule
        self.train_weights = train_weights
        self.seed = seed
        self.progress = 0.0
        self.choose: Callable[[], Mapping[str, Tensor]] = dict
        self.parameters: dict[str, nn.Parameter] = {}
        self.dense: dict[str, Tensor] = {}
        self.scores: dict[str, nn.Parameter] = {}
        self._masks: Mapping[str, Tensor] = {}
        self._noise: dict[str, Tensor] = {}
        self._inside: set[str] = set()  # whose gradient was carried back, for the step to come

    @property
    def active(self) -> bool:
        """Whether masks are being learned."""
        return bool(self.scores)

    def attach(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Takes the parameters of a model; what was learned of others is forgotten."""
        self.stop()
        self.parameters = dict(parameters)

    @torch.no_grad()
    def begin(self) -> None:
        """Takes the present values for the dense ones, draws the first scores, puts f in."""
        for name, parameter in self.parameters.items():
            weight = parameter.detach()
            wide = torch.promote_types(weight.dtype, torch.float32)
            generator = _on(weight.device, make_generator(self.seed, 0, f"{name} scores"))
            self.dense[name] = weight.clone()
            self.scores[name] = nn.Parameter(self.method.init_scores(weight.to(wide), generator))
        self.deterministic()

    def stop(self) -> None:
        """Forgets dense weights and scores; the parameters stay as they are."""
        for kept in (self.dense, self.scores, self._noise, self._inside):
            kept.clear()
        self._masks, self.progress = {}, 0.0

    @torch.no_grad()
    def deterministic(self) -> None:
        """Puts in the effective weights that evaluation and checkpoints see; no noise."""
        self._noise.clear()
        self._inside.clear()
        self._masks = self.choose()
        for name in self.scores:
            self._write(name)

    @torch.no_grad()
    def sample_noise(self, step: int) -> None:
        """Puts in effective weights with this step's noise; the same for the same step."""
        for name in self.scores:
            weight = self.dense[name]
            generator = _on(weight.device, make_generator(self.seed, 1 + step, name))
            uniform = torch.rand(
                weight.shape,
                dtype=self.scores[name].dtype,
                device=weight.device,
                generator=generator,
            )
            self._noise[name] = uniform.logit_(eps=1e-6)
            self._write(name)

    @torch.no_grad()
    def backward_to_dense(self, optimizer: Optimizer) -> None:
        """Carries gradients back to dense weights and scores, and puts the dense weights in.

        Args:
            optimizer: Whose step follows; parameters of others are left alone.
        """
        for name in self._names(optimizer):
            parameter, scores = self.parameters[name], self.scores[name].detach()
            if parameter.grad is None or name in self._inside:
                continue
            weight, grad = self.dense[name].to(scores.dtype), parameter.grad.to(scores.dtype)
            back = self.method.vjp(weight, scores, self._given(name), grad)
            to_weight, self.scores[name].grad = back
            if self.train_weights:
                parameter.grad.copy_(to_weight)
                parameter.copy_(self.dense[name])
            else:
                parameter.grad = None  # no optimizer touches it
            self._inside.add(name)

    @torch.no_grad()
    def collect_dense(self, optimizer: Optimizer) -> list[str]:
        """Takes the dense weights out, updated, after an optimizer's step.

        Args:
            optimizer: Whose step it was.

        Returns:
            The names of those that had a gradient; `put` follows.

        Raises:
            StateError: If the step was made past `carry`, on effective weights.
        """
        names = self._names(optimizer)
        missed = [n for n in names if n not in self._inside and self.parameters[n].grad is not None]
        if missed:
            raise StateError(
                f"an optimizer stepped on {missed[0]} without Lightning's hooks, so the masks that "
                "are learned saw no gradient: call step() of self.optimizers(), not of a raw "
                "optimizer"
            )
        stepped = [name for name in names if name in self._inside]
        for name in stepped:
            if self.train_weights:
                self.dense[name].copy_(self.parameters[name])
        return stepped

    @torch.no_grad()
    def write_effective(self, optimizer: Optimizer) -> None:
        """Puts effective weights in, after a step, without noise."""
        names = self._names(optimizer)
        self._masks = self.choose()
        for name in names:
            self._noise.pop(name, None)
            self._write(name)
        self._inside.difference_update(names)

    def settle(self) -> None:
        """Write effective weights where a step was skipped or noise is left."""
        if self._inside or self._noise:
            for scores in self.scores.values():
                scores.grad = None
            self.deterministic()

    def held(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """The parameters that an optimizer trains."""
        return [self.parameters[name] for name in self._names(optimizer)]

    def _names(self, optimizer: Optimizer) -> list[str]:
        """The names of the parameters that an optimizer trains."""
        trained = trained_parameters(optimizer)
        return [name for name in self.scores if id(self.parameters[name]) in trained]

    def _given(self, name: str) -> MaskContext:
        return MaskContext(self.progress, self._noise.get(name), self._masks.get(name))

    def _write(self, name: str) -> None:
        scores = self.scores[name].detach()
        weight = self.dense[name].to(scores.dtype)
        effective = self.method.weights(weight, scores, self._given(name))
        self.parameters[name].copy_(effective.add_(0.0))  # -0.0 becomes +0.0


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator of that device with the same seed."""
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(generator.initial_seed())
