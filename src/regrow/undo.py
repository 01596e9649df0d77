# SPDX-License-Identifier: MIT
"""What brings weights back: un-prune to the bit, regrow with any value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.by_rows import called, refuse_whole
from regrow.changes import whole
from regrow.criteria import seeded
from regrow.errors import ConfigError, StateError, check_patterns
from regrow.holding import Hold, Train
from regrow.initializers import BY_ROWS, Initializer, Return, make_initializer
from regrow.initializers import removed as removed_values
from regrow.masked import Keep, MaskedModel, moments
from regrow.regrowth import Growth, by_gradient, choose_regrown, how_many, make_growth
from regrow.returning import Make, values_of
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
        kept = [self.enforcer.kept(target.name) for target in targets]
        seed = (self.seed, len(self.history))
        regrown = choose_regrown(
            growth, targets, kept, amount, momenta=self.momenta, removed=self._removed, seed=seed
        )
        places = {t.name: back for t, back in zip(targets, regrown, strict=True)}
        if self.shards.ranks is None:  # else all ranks must do the same
            targets = [target for target in targets if places[target.name].any()]
        makes = [partial(self._return, t, places[t.name], seed, initializer) for t in targets]
        values = values_of(initializer, makes)
        self.enforcer.changes.touch()
        for make, value in zip(makes, values, strict=True):
            self._bring_back(make, value, initializer is removed_values, optimizers)
        self.hold.set(train, {target.name: places[target.name] for target in targets})
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
            grad, kept = target.grad, self.enforcer.kept(target.name)
            if grad is None:
                found.append(1)
            else:
                found.append(0 if kept is None else int(((grad != 0) & (kept == 0)).any()))
        if any(Everywhere([target.shard for target in targets]).sums(found)):
            return
        raise StateError(
            "every gradient at a pruned place is zero, so they have been masked already: grow by "
            "'gradient' after backward() and before masks are applied; within a fit write "
            "Regrow(by='gradient', ...), which does"
        )

    def _removed(self, target: Target) -> Tensor | None:
        """The removed values of one target, made now; None where nothing was kept."""
        if self.vault is None or not self.vault.holds(target):
            return None
        return self.vault.of(target, self.enforcer.mask(target.name))

    def _return(
        self, target: Target, places: Tensor, seed: tuple[int, int], initializer: Initializer
    ) -> Return:
        """The places of one target that come back, as an initialiser sees them."""
        wanted = initializer is removed_values or initializer not in BY_ROWS
        return Return(
            target.name,
            target.weight,
            self.enforcer.mask(target.name),
            places,
            seeded(*seed, f"{target.name} init"),
            target.input_dim,
            target.groups,
            self._removed(target) if wanted else None,
            self.originals.get(target.name),
            target.shard,
        )

    def _bring_back(
        self, make: Make, value: Initializer, restore: bool, optimizers: list[Optimizer]
    ) -> None:
        """Writes the values of the places that come back, and clears or restores their moments."""
        back = make()
        name, values = back.name, value(back).to(back.weight.device, back.weight.dtype)
        torch.where(back.regrown, values, back.weight, out=back.weight)
        for key, moment in moments(self.enforcer.parameters[name], optimizers).items():
            held = (
                self.vault.values_like(f"{name}{MOMENT}{key}", moment, back.kept)
                if restore and self.vault is not None
                else None
            )
            if held is None:
                moment.masked_fill_(back.regrown, 0)
            else:
                torch.where(back.regrown, held, moment, out=moment)
        mask = back.kept | back.regrown
        del back, values  # the vault needs their room
        self._set(name, mask, optimizers)
