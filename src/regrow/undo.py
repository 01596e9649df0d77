# SPDX-License-Identifier: MIT
"""What brings weights back: un-prune to the bit, regrow with any value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.by_rows import called, refuse_whole
from regrow.changes import whole
from regrow.criteria import seeded
from regrow.errors import ConfigError, StateError, check_count, check_patterns, check_sparsity
from regrow.holding import Hold, Train
from regrow.initializers import Initializer, Return, make_initializer
from regrow.initializers import removed as removed_values
from regrow.masked import Keep, MaskedModel, moments
from regrow.regrowth import Growth, by_gradient, choose_regrown, make_growth
from regrow.sharding import Everywhere
from regrow.targets import Selection, Target
from regrow.vault import MOMENT


class Undo(MaskedModel):
    """A masked model whose weights can come back.

    Args:
        model: See `MaskedModel`, like the next two.
        selection: What is pruned.
        keep_removed: What goes to the vault.
        soft: Whether dense values go on learning.
        seed: For random draws, with the number of the event and the parameter's name.

    Attributes:
        hold: What trains after regrowth, while the rest is held.
        momenta: Running means of dense gradients by name, where somebody tracks them.
        tracks_means: Whether somebody does.
        originals: Remembered values by name, for `init="original"`.
    """

    def __init__(
        self, model: nn.Module, selection: Selection, keep_removed: Keep, soft: bool, seed: int
    ) -> None:
        super().__init__(model, selection, keep_removed, soft)
        self.seed = seed
        self.hold = Hold(model, self.enforcer)
        self.momenta: dict[str, Tensor] = {}
        self.tracks_means = False
        self.originals: dict[str, Tensor] = {}

    @whole
    def unprune(
        self, names: Iterable[str] | str | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> dict[str, Any]:
        """Puts removed values back to the bit; those weights are dense again.

        Args:
            names: Patterns of parameters; None: all.
            optimizers: Whose state is masked where pruned places remain.

        Returns:
            The new entry of `history`.

        Raises:
            StateError: If nothing was kept (`keep_removed=False`).
            ConfigError: If a pattern matches no pruned parameter.

        Example:
            >>> from regrow import Pruner
            >>> layer = nn.Linear(10, 10)
            >>> before, pruner = layer.weight.clone(), Pruner(layer, keep_removed=True)
            >>> _ = pruner.prune_to(0.9)
            >>> _ = pruner.unprune()
            >>> bool((layer.weight == before).all())
            True
        """
        if self.vault is None and not self.soft:
            raise StateError("nothing was kept to put back: write keep_removed=True before pruning")
        before, optimizers, named = self.sparsity, list(optimizers), self.named(names)
        self.enforcer.changes.touch()
        for target in named:
            parameter = target.weight
            if self.vault is None:  # the dense values come back by themselves
                self._count(target.name, torch.ones_like(parameter, dtype=torch.bool))
                continue
            mask = self.enforcer.mask(target.name)
            self.vault.restore(target.name, parameter, mask)
            for key, moment in moments(target.parameter, optimizers).items():
                self.vault.restore(f"{target.name}{MOMENT}{key}", moment, mask)
            self.vault.forget(target.name)  # moments whose optimizer is gone
            self._count(target.name, torch.ones_like(parameter, dtype=torch.bool))
        self.enforce(optimizers)
        return self.note("unprune", before)

    @whole
    @torch.no_grad()
    def regrow(
        self,
        fraction: float | None = None,
        count: int | None = None,
        *,
        by: str | Growth = "random",
        init: str | Initializer = "he",
        names: Iterable[str] | str | None = None,
        train: Train = "all",
        optimizers: Iterable[Optimizer] = (),
    ) -> dict[str, Any]:
        """Brings pruned weights back; no other weight changes a bit.

        Args:
            fraction: Of what is pruned in `names`; or
            count: how many weights.
            by: Which come back: "random", "gradient", "momentum", "removed", or a rule (see
                `regrow.regrowth.Growth`).
            init: With what value: see `regrow.initializers`.
            names: Patterns of parameters; None: all.
            train: What trains from now on: "all", "regrown" (all that does not come back with this
                call is held), or patterns of parameters and modules. See `regrow.holding.Hold`.
            optimizers: Their state at the places that come back is zero (Rprop's step size: the
                learning rate); with `keep_removed="moments"` and `init="removed"` it is restored.

        Returns:
            The new entry of `history`.

        Raises:
            ConfigError: If not exactly one of fraction and count is given, or more is asked for
                than is pruned; if nothing would train.
            StateError: If the rule or the initialiser lacks what it needs, naming the parameter.

        Example:
            >>> from regrow import Pruner
            >>> pruner = Pruner(nn.Linear(10, 10))
            >>> _ = pruner.prune_to(0.9)
            >>> pruner.regrow(0.5)["pruned"]
            45
        """
        if self.soft:
            raise ConfigError(
                "soft pruning brings weights back by itself, at each event: leave regrow out, or "
                "call unprune()"
            )
        targets, optimizers, before = self.named(names), list(optimizers), self.sparsity
        amount = how_many(fraction, count, sum(self._pruned[target.name] for target in targets))
        growth, initializer = make_growth(by), make_initializer(init)
        if self.shards.ranks is not None:
            refuse_whole(growth, initializer, targets)
        train = self.hold.check(train)
        if train == "regrown" and not amount:
            raise ConfigError("no weight comes back, so train='regrown' leaves nothing to train")
        if growth is by_gradient and amount:
            self._refuse_masked(targets)
        kept = [self.enforcer.mask(target.name) for target in targets]
        removed = {} if self.vault is None else self.vault.whole(targets, kept)
        seed = (self.seed, len(self.history))
        regrown = choose_regrown(
            growth, targets, kept, amount, momenta=self.momenta, removed=removed, seed=seed
        )
        backs = [
            Return(
                target.name,
                target.weight,
                mask,
                places,
                seeded(*seed, f"{target.name} init"),
                target.input_dim,
                target.groups,
                removed.get(target.name),
                self.originals.get(target.name),
                target.shard,
            )
            for target, mask, places in zip(targets, kept, regrown, strict=True)
        ]
        if self.shards.ranks is None:  # else all ranks must do the same
            backs = [back for back in backs if back.regrown.any()]
        values = [_checked(back, initializer(back)) for back in backs]
        self.enforcer.changes.touch()
        for back, value in zip(backs, values, strict=True):
            self._bring_back(back, value, initializer is removed_values, optimizers)
        self.hold.set(train, {back.name: back.regrown for back in backs})
        self.enforce(optimizers)
        trains = train if isinstance(train, str) else list(train)
        words = {"by": called(by), "init": called(init), "count": amount, "train": trains}
        return self.note("regrow", before, **words)

    def enforce(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Applies the masks; what was noted of held places is noted anew."""
        super().enforce(optimizers)
        self.hold.forget()

    def settle(self) -> None:
        super().settle()
        self.hold.forget()

    def remember(self) -> None:
        """Keeps the present values of all targets, for `init="original"`."""
        self.originals = {t.name: t.weight.clone() for t in self.targets}

    def change(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Changes masks and all that is held along with parameters that lost channels."""
        super().change(change)
        self.hold.change(change)
        for held in (self.originals, self.momenta):
            held.update({name: change(name, values) for name, values in held.items()})

    def state_dict(self) -> dict[str, Any]:
        """Everything that is held, remembered values included."""
        return super().state_dict() | {
            "originals": self.shards.whole(self.originals),
            "train": self.hold.state_dict(),
        }

    @whole
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        originals = self.shards.rows(state["originals"])
        self.originals = {name: values.clone() for name, values in originals.items()}
        self.hold.load_state_dict(state["train"])

    def named(self, names: Iterable[str] | str | None) -> list[Target]:
        """The targets that patterns mean; None: all.

        Raises:
            ConfigError: If a pattern matches none, with the nearest names.
        """
        patterns = ["*"] if names is None else check_patterns("names", names) or ()
        found = {name for pattern in patterns for name in self.selection.match(pattern, "names")}
        return [target for target in self.targets if target.name in found]

    def pruned_in(self, names: Iterable[str] | str | None) -> int:
        """How many weights of the targets that patterns mean are pruned."""
        return sum(self._pruned[target.name] for target in self.named(names))

    def _refuse_masked(self, targets: Iterable[Target]) -> None:
        """Refuses to grow by gradients that a mask has been over: they are zero where it prunes."""
        found = []
        for target in targets:
            grad, gone = target.grad, ~self.enforcer.mask(target.name)
            found.append(int(grad is None or bool(grad[gone].any())))
        if any(Everywhere([target.shard for target in targets]).sums(found)):
            return
        raise StateError(
            "every gradient at a pruned place is zero, so they have been masked already: grow by "
            "'gradient' after backward() and before masks are applied; within a fit write "
            "Regrow(by='gradient', ...), which does"
        )

    def _bring_back(
        self, back: Return, values: Tensor, restore: bool, optimizers: list[Optimizer]
    ) -> None:
        """Writes the values of the places that come back, and clears or restores their moments."""
        values = values.to(back.weight.device, back.weight.dtype)
        back.weight[back.regrown] = values[back.regrown]
        for key, moment in moments(self.enforcer.parameters[back.name], optimizers).items():
            held = (
                None
                if self.vault is None
                else self.vault.values_like(f"{back.name}{MOMENT}{key}", moment, back.kept)
            )
            whole = torch.zeros_like(moment) if held is None or not restore else held
            moment[back.regrown] = whole[back.regrown]
        self._set(back.name, back.kept | back.regrown, optimizers)


def how_many(fraction: float | None, count: int | None, pruned: int) -> int:
    """How many of the pruned weights come back.

    Raises:
        ConfigError: If not exactly one of fraction and count is given, or it is out of range.

    Example:
        >>> how_many(0.1, None, 90)
        9
    """
    if (fraction is None) == (count is None):
        raise ConfigError(
            f"regrow takes a fraction of what is pruned or a count, one of the two, got "
            f"fraction={fraction}, count={count}: write regrow(0.1)"
        )
    if count is not None:
        return check_count("count", count, least=0)
    if fraction == 1 and not isinstance(fraction, bool):
        return pruned
    return round(check_sparsity("fraction", fraction) * pruned)


def _checked(back: Return, values: Tensor) -> Tensor:
    if values.shape != back.weight.shape:
        raise StateError(
            f"the initialiser of {back.name} must give values of shape "
            f"{tuple(back.weight.shape)}, got {tuple(values.shape)}"
        )
    return values
