# SPDX-License-Identifier: MIT
"""Distill: adds a distillation loss to the training loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.checkpoint_files import check_format, check_trained_with
from regrow.callbacks.support.forward_recorder import Call, ForwardRecorder
from regrow.callbacks.support.teacher import START, check_teachers_agree, digest, make_teacher
from regrow.distillation import distillation_loss, soft_loss
from regrow.utils.errors import ConfigError, StateError, check_positive, suggest
from regrow.utils.lightning_classes import pl

FORMAT = 1
_STEP = "training_step"


class DistillState(TypedDict):
    """The saved state of `Distill`, compared on resume."""

    format: int  # version of this layout
    teacher: str  # hash of the teacher's weights
    temperature: float
    weight: float


class Distill(Callback):
    """Add a distillation loss to the loss that `training_step` returns.

    loss = (1 - weight) own + weight T^2 KL(teacher / T || student / T), where `own` is the loss of
    `training_step`. The teacher is called with the same inputs as the student. It is a copy in eval
    mode, without gradients, outside of optimizers, `state_dict`, DDP and checkpoints, cast to the
    student's dtype where they have none in common; a checkpoint stores its hash, which is compared
    on resume. `distill/loss` is logged: the KL term without `weight`, under DDP that of rank 0.

    Args:
        teacher: A module that is called like the student; the path of a checkpoint for a copy of
            the student; or "start": a copy of the student when the fit is set up. None raises,
            unless `regrow train` sets the run's dense baseline.
        temperature: T, above 0.
        weight: In (0, 1].
        network: Name of the submodule that the teacher replaces, called once per step; None: the
            module itself, called as `self(x)`.
        logits: What returns the student's logits: a submodule's name, or a key of the dict that
            `training_step` returns. None: the network's output.
        dim: The dimension of the classes; 1 for images of logits.

    Raises:
        ConfigError: For invalid settings and for manual optimization, before the first step.
        StateError: If a step does not return what was named, or the teacher is not that of the
            checkpoint.

    Source: Hinton et al. 2015, arXiv:1503.02531.

    Example:
        >>> Distill("dense.ckpt", weight=90)
        Traceback (most recent call last):
            ...
        regrow.ConfigError: weight must be in (0, 1], got 90: write 0.9
    """

    def __init__(
        self,
        teacher: nn.Module | str | Path | None = None,
        *,
        temperature: float = 4.0,
        weight: float = 0.5,
        network: str | None = None,
        logits: str | None = None,
        dim: int = -1,
    ) -> None:
        super().__init__()
        if not (teacher is None or isinstance(teacher, nn.Module | str | Path)):
            raise ConfigError(
                f"teacher must be a module, a checkpoint's path or {START!r}, got {teacher!r}"
            )
        self.given = teacher
        self.temperature = check_positive("temperature", temperature, "4.0")
        self.weight = check_positive("weight", weight, "0.5")
        if self.weight > 1:
            hint = f"write {weight / 100:g}" if weight <= 100 else "write 0.5"
            raise ConfigError(f"weight must be in (0, 1], got {weight}: {hint}")
        self.network, self.logits, self.dim = network, logits, dim
        self.teacher: nn.Module | None = None
        self._digest = ""
        self._loaded: dict[str, Any] | None = None
        self._recorders: list[ForwardRecorder] = []
        self._step: Callable[..., Any] | None = None  # in place of the strategy's

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._loaded = None
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ConfigError(
                "Distill adds to the loss that training_step returns, which manual optimization "
                "does not use: set automatic_optimization=True, or add "
                "regrow.distillation.soft_loss(...) in training_step"
            )
        # before a checkpoint's weights are loaded, and channels cut
        self.teacher = make_teacher(self.given, self._student(pl_module))
        self._digest = digest(self.teacher)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        check_trained_with(self, trainer, checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.teacher is not None
        check_teachers_agree(trainer, self._digest)
        teacher = trainer.precision_plugin.convert_module(self.teacher.to(pl_module.device))
        self.teacher = teacher.eval()
        self._recorders = [ForwardRecorder(pl_module, self.network or "")]
        if self.logits in dict(pl_module.named_modules()):
            self._recorders.append(ForwardRecorder(pl_module, str(self.logits)))
        self._wrap(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._loaded is not None:
            self._check_same_settings(self._loaded)
            self._loaded = None
        if self.given == START:
            rank_zero_info(f"Distill: the teacher is the student at the fit's start {self._digest}")

    def state_dict(self) -> dict[str, Any]:
        now: DistillState = {
            "format": FORMAT,
            "teacher": self._digest,
            "temperature": self.temperature,
            "weight": self.weight,
        }
        return self._loaded or {**now}  # not compared yet, as within a learning-rate finder

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_format(state_dict, FORMAT, self.state_key)
        self._loaded = state_dict

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._step is not None and trainer.strategy.__dict__.get(_STEP) is self._step:
            del trainer.strategy.__dict__[_STEP]
        for recorder in self._recorders:
            recorder.remove()
        self._step, self._recorders = None, []

    def _student(self, module: nn.Module) -> nn.Module:
        """The submodule that the teacher replaces."""
        if not self.network:
            return module
        named = dict(module.named_modules())
        if self.network not in named:
            raise ConfigError(
                f"network={self.network!r} is no submodule: {suggest(self.network, named)}"
            )
        found: nn.Module = named[self.network]
        return found

    def _wrap(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Wrap the strategy's training step to return the distillation loss until the fit ends.

        No hook may replace the loss. The strategy's method is outside of whatever wraps (DDP) or
        compiles the module, and inside of gradient accumulation and the gradient scaler.
        """
        strategy = trainer.strategy
        inner = strategy.training_step

        def step(*args: Any, **kwargs: Any) -> Any:
            with self._recorders[0].recording(), self._recorders[-1].recording():
                given = inner(*args, **kwargs)
            return self._taught(trainer, module, given)

        if _STEP in strategy.__dict__:
            raise ConfigError("something else replaces the strategy's training_step: leave it out")
        strategy.__dict__[_STEP] = self._step = step

    def _taught(self, trainer: pl.Trainer, module: pl.LightningModule, given: Any) -> Any:
        """The output of `training_step`, with its loss replaced."""
        own = given.get("loss") if isinstance(given, Mapping) else given
        if not isinstance(own, Tensor):
            return given  # the step is skipped, or Lightning says what is wrong
        wrapped = trainer.strategy.model is not module
        calls = [r.single_call(wrapped and not r.name) for r in self._recorders]
        student = self._student_logits(given, calls)
        with trainer.precision_plugin.train_step_context(), torch.no_grad():
            teacher = self._teacher_logits(calls[0])
        soft = soft_loss(student, teacher, self.temperature, self.dim)
        module.log("distill/loss", soft.detach(), batch_size=len(student))
        loss = distillation_loss(own, soft, self.weight)
        return {**given, "loss": loss} if isinstance(given, Mapping) else loss

    def _student_logits(self, given: Any, calls: list[Call]) -> Tensor:
        if self.logits is None or len(calls) > 1:
            name = self.logits or self.network or "the module's forward"
            return _learning_logits(calls[-1].output, f"the student ({name})")
        if not isinstance(given, Mapping) or self.logits not in given:
            there = f"the keys {', '.join(given)}" if isinstance(given, Mapping) else "no dict"
            raise StateError(
                f"logits={self.logits!r} is no submodule, and training_step returned {there}: "
                "return {'loss': ..., 'logits': ...}, or name a submodule"
            )
        return _learning_logits(given[self.logits], f"training_step[{self.logits!r}]")

    def _teacher_logits(self, call: Call) -> Tensor:
        assert self.teacher is not None
        values = (*call.args, *call.kwargs.values())
        if any(isinstance(value, Tensor) and value.requires_grad for value in values):
            raise StateError(
                f"network={self.network!r} is called with features of layers that train, not with "
                "data: name the module that sees the data, and these logits by logits=..."
            )
        return _tensor(self.teacher(*call.args, **call.kwargs), "the teacher")

    def _check_same_settings(self, state: Mapping[str, Any]) -> None:
        if state["teacher"] != self._digest:
            raise StateError(
                f"the checkpoint was trained with another teacher (weights {state['teacher']}, now "
                f"{self._digest}): give the same one ({START!r}: make the student with the weights "
                "from which that fit started), or load the weights and start a fit"
            )
        for name, value in (("temperature", self.temperature), ("weight", self.weight)):
            if state[name] != value:
                raise StateError(
                    f"the checkpoint was trained with {name}={state[name]:g}, now it is {value:g}: "
                    "write the same, or load the weights and start a fit"
                )


def _learning_logits(output: Any, whose: str) -> Tensor:
    """The logits in the student's output, which must have a gradient."""
    logits = _tensor(output, whose)
    if torch.is_grad_enabled() and not logits.requires_grad:
        raise StateError(
            f"{whose} gave logits without a gradient, from which nothing is learned: return them "
            "without detach(), outside of no_grad()"
        )
    return logits


def _tensor(output: Any, whose: str) -> Tensor:
    """The logits in a network's output: a tensor, or 'logits' of a dict or object."""
    found = output.get("logits") if isinstance(output, Mapping) else output
    found = getattr(found, "logits", found)
    if isinstance(found, Tensor) and found.is_floating_point() and found.dim() > 0:
        return found
    raise StateError(
        f"{whose} gave {type(output).__name__} instead of logits: it must give a tensor with a "
        "dimension for the classes, or a dict or object with 'logits'"
    )
