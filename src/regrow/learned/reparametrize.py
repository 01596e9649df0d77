# SPDX-License-Identifier: MIT
"""Effective weights in the parameters, dense weights stored beside them.

The parameters hold effective weights f(w, s). Before an optimizer step their gradient is propagated
to w and s by a vector-Jacobian product of f, and the dense w are written into the parameters; after
the step the updated w are stored again and effective weights are written. So all other code sees
effective weights, and the module's state_dict has no new keys.
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
    """Dense weights and scores from which the values of parameters are computed."""

    def __init__(self, method: MaskMethod, *, train_weights: bool = True, seed: int = 0) -> None:
        self.method = method
        self.train_weights = train_weights
        self.seed = seed
        self.progress = 0.0  # the completed fraction of the learning
        self.choose: Callable[[], Mapping[str, Tensor]] = dict  # masks of the highest scores
        self.parameters: dict[str, nn.Parameter] = {}  # changed in place, never replaced
        self.dense: dict[str, Tensor] = {}  # their dense weights; empty while nothing is learned
        self.scores: dict[str, nn.Parameter] = {}
        self._masks: Mapping[str, Tensor] = {}
        self._noise: dict[str, Tensor] = {}
        self._inside: set[str] = set()  # names whose parameters hold dense weights for a step

    @property
    def active(self) -> bool:
        """Whether masks are being learned."""
        return bool(self.scores)

    def attach(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Use the parameters of a model; everything learned before is discarded."""
        self.stop()
        self.parameters = dict(parameters)

    @torch.no_grad()
    def begin(self) -> None:
        """Copy the present values as dense weights, make scores, and write effective weights."""
        for name, parameter in self.parameters.items():
            weight = parameter.detach()
            wide = torch.promote_types(weight.dtype, torch.float32)
            generator = self._generator(weight.device, 0, f"{name} scores")
            self.dense[name] = weight.clone()
            self.scores[name] = nn.Parameter(self.method.init_scores(weight.to(wide), generator))
        self.deterministic()

    def stop(self) -> None:
        """Discard dense weights and scores; the parameters do not change."""
        for stored in (self.dense, self.scores, self._noise, self._inside):
            stored.clear()
        self._masks, self.progress = {}, 0.0

    @torch.no_grad()
    def restore_dense(self) -> None:
        """Write the dense weights where parameters have their effective values, and stop."""
        found = {name: self.parameters[name].detach().clone() for name in self.scores}
        self.deterministic()
        for name, value in found.items():
            same = torch.equal(self.parameters[name], value)  # else weights were loaded since
            self.parameters[name].copy_(self.dense[name] if same else value)
        self.stop()

    @torch.no_grad()
    def deterministic(self) -> None:
        """Write effective weights without noise, for evaluation and checkpoints."""
        self._noise.clear()
        self._inside.clear()
        self._masks = self.choose()
        for name in self.scores:
            self._write(name)

    @torch.no_grad()
    def sample_noise(self, step: int) -> None:
        """Write effective weights with noise that depends on the seed and the step alone."""
        for name, scores in self.scores.items():
            weight = self.dense[name]
            generator = self._generator(weight.device, 1 + step, name)
            uniform = torch.rand(
                weight.shape, dtype=scores.dtype, device=weight.device, generator=generator
            )
            self._noise[name] = uniform.logit_(eps=1e-6)
            self._write(name)

    @torch.no_grad()
    def backward_to_dense(self, optimizer: Optimizer) -> None:
        """Propagate gradients to dense weights and scores, and write the weights that step next."""
        for name in self._names(optimizer):
            parameter, scores = self.parameters[name], self.scores[name].detach()
            if parameter.grad is None or name in self._inside:
                continue
            weight, grad = self.dense[name].to(scores.dtype), parameter.grad.to(scores.dtype)
            to_weight, to_scores = self.method.vjp(weight, scores, self._context(name), grad)
            self.scores[name].grad = to_scores
            if self.train_weights:
                parameter.grad.copy_(to_weight)
                parameter.copy_(self.dense[name])
            else:
                parameter.grad = None  # the optimizer skips it
            self._inside.add(name)

    @torch.no_grad()
    def collect_dense(self, optimizer: Optimizer) -> list[str]:
        """Store the dense weights that a step has updated; `write_effective` must follow.

        Returns the names of those that had a gradient. `StateError` if the step was made without
        `backward_to_dense`, on effective weights.
        """
        names = self._names(optimizer)
        missed = [n for n in names if n not in self._inside and self.parameters[n].grad is not None]
        if missed:
            raise StateError(
                f"an optimizer stepped on {missed[0]} without Lightning's hooks, so the masks that "
                "are learned received no gradient: call step() of self.optimizers(), not of a raw "
                "optimizer"
            )
        stepped = [name for name in names if name in self._inside]
        for name in stepped:
            if self.train_weights:
                self.dense[name].copy_(self.parameters[name])
        return stepped

    @torch.no_grad()
    def write_effective(self, optimizer: Optimizer) -> None:
        """Write effective weights after an optimizer's step, without noise."""
        names = self._names(optimizer)
        self._masks = self.choose()
        for name in names:
            self._noise.pop(name, None)
            self._write(name)
        self._inside.difference_update(names)

    def flush_dense(self) -> None:
        """Write effective weights where a step was skipped or noise remains."""
        if self._inside or self._noise:
            for scores in self.scores.values():
                scores.grad = None
            self.deterministic()

    def targets_of(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """Return the parameters with scores that an optimizer trains."""
        return [self.parameters[name] for name in self._names(optimizer)]

    def _names(self, optimizer: Optimizer) -> list[str]:
        trained = trained_parameters(optimizer)
        return [name for name in self.scores if id(self.parameters[name]) in trained]

    def _context(self, name: str) -> MaskContext:
        return MaskContext(self.progress, self._noise.get(name), self._masks.get(name))

    def _write(self, name: str) -> None:
        scores = self.scores[name].detach()
        weight = self.dense[name].to(scores.dtype)
        effective = self.method.weights(weight, scores, self._context(name))
        self.parameters[name].copy_(effective.add_(0.0))  # -0.0 becomes +0.0

    def _generator(self, device: torch.device, event: int, name: str) -> torch.Generator:
        generator = make_generator(self.seed, event, name)
        if device.type == "cpu":
            return generator
        return torch.Generator(device).manual_seed(generator.initial_seed())
