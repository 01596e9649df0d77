# SPDX-License-Identifier: MIT
"""MaskGuard: notices pruned weights that other code writes, and parameters that it replaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_utilities.core.rank_zero import rank_zero_warn

from regrow.callbacks.core.checks import replaced_parameters
from regrow.callbacks.core.session import PruningSession
from regrow.distributed.shard import reshard_fsdp
from regrow.utils.errors import StateError, join_limited
from regrow.utils.lightning_classes import overrides, pl
from regrow.utils.names import named_parameters
from regrow.utils.optimizers import is_foreign, trained_parameters

# Hooks that run between two optimizer steps, where weights may be written.
_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_test_start",
    "on_test_epoch_start",
    "on_predict_start",
    "on_predict_epoch_start",
    "on_before_zero_grad",
    "on_train_end",
    "on_save_checkpoint",
    "optimizer_step",
)
# Callbacks of these packages write no pruned weights.
_TRUSTED_PACKAGES = ("regrow.", "lightning.", "pytorch_lightning.")


class MaskGuard:
    """Checks at validation, test, saving and the end of a fit that pruned weights are zero.

    The optimizer's step masks weights, but hooks after it may write them: a moving average, noise,
    `load_state_dict`. They are masked again, and the first time a warning names the parameters and
    the hooks that may have written them.

    Args:
        session: Whose masks are checked.
        trainer: Its Trainer.
        module: The module that is pruned.
    """

    def __init__(
        self, session: PruningSession, trainer: pl.Trainer, module: pl.LightningModule
    ) -> None:
        self.session = session
        self.trainer = trainer
        self.module = module
        self._warned = False

    def check(self, when: str) -> None:
        """Mask weights that were written, and follow parameters that were replaced.

        Args:
            when: Where it was noticed, for the warning.

        Raises:
            StateError: If a parameter was replaced by one of another shape.
        """
        self.check_parameters()
        if self.session.current is None:
            return
        enforcer = self.session.current.enforcer
        if names := enforcer.find_live():
            enforcer.weights()
            if not self._warned:
                self._warned = True
                self._warn(names, when)

    def check_parameters(self) -> None:
        """Carry masks over to parameters that replaced others of the same shape.

        Raises:
            StateError: If the new ones have another shape, or masks are learned.
        """
        pruner, session = self.session.current, self.session
        if pruner is None or pruner.model is not self.module:
            return
        reshard_fsdp(self.module)
        lost = replaced_parameters(self.module, pruner)
        if not lost:
            return
        now = named_parameters(self.module)
        shapes = {target.name: target.parameter.shape for target in pruner.targets}
        for name in lost:
            if session.strategy.learns_masks or name not in now or now[name].shape != shapes[name]:
                found = f"shape {tuple(now[name].shape)}" if name in now else "nothing"
                raise StateError(
                    f"{name} of shape {tuple(shapes[name])} was replaced by {found} within the "
                    "fit, and its masks cannot be carried over: replace parameters before "
                    f"trainer.fit, or write exclude=[{name!r}]"
                )
        session.rebind()
        trained = trained_parameters(*session.optimizers)
        idle = [name for name in lost if id(now[name]) not in trained]
        message = (
            f"{join_limited(lost)} of the model were replaced by new parameters within the fit: "
            "their masks were carried over"
        )
        if idle and session.optimizers:
            message += (
                f", but no optimizer trains {join_limited(idle)}: copy values into the present "
                "parameters, or hand the new ones to the optimizer"
            )
        rank_zero_warn(message)

    def _warn(self, names: Sequence[str], when: str) -> None:
        suspects = ", ".join(self._suspects()) or "none of the module's or a callback's hooks"
        rank_zero_warn(
            f"pruned weights of {join_limited(names)} were written after the optimizer's step and "
            f"were not zero {when}; they are zero again, there and from now on wherever they are "
            f"checked. What may have written them: {suspects}. Write weights before the "
            "optimizer's step, or exclude parameters that are not to be pruned"
        )

    def _suspects(self) -> Iterator[str]:
        """Yield hooks that run outside the optimizer's step, and optimizers of other packages."""
        for hook in _HOOKS:
            if overrides(self.module, hook, "LightningModule"):
                yield f"{type(self.module).__name__}.{hook}"
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if not type(callback).__module__.startswith(_TRUSTED_PACKAGES):
                for hook in _HOOKS:
                    if overrides(callback, hook, "Callback"):
                        yield f"{type(callback).__name__}.{hook}"
        yield from {
            f"the optimizer {type(optimizer).__name__}": None
            for optimizer in self.session.optimizers
            if is_foreign(optimizer)
        }
