# SPDX-License-Identifier: MIT
"""A callback that checks the guarantees of a pruning callback at every step of a fit."""

import numpy as np
import torch
from fuzz_reference import grouped, lowest, scores_of, unit

import regrow.callbacks.core.base
from regrow import DynamicSparseTraining

WIDTH = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    return tensor.detach().view(WIDTH[tensor.element_size()])


class Promises(regrow.callbacks.core.base.Callback):
    """Check one pruning callback; must be the first callback.

    Args:
        pruning: The callback.
        given: Its arguments.
        alone: Whether no other pruning callback is there.
        held: Whether nothing but the plan changes masks.
    """

    def __init__(self, pruning, given, alone, held):
        super().__init__()
        self.pruning, self.given, self.alone, self.held = pruning, given, alone, held
        self.soft = given.get("soft", False)
        self.kept, self.values, self.gone = {}, {}, {}
        self.grads, self.looks, self.events, self.undone, self.taken = {}, 0, 0, [], 0

    def on_train_start(self, trainer, pl_module):
        self.keys = list(pl_module.state_dict())
        self.same = {name: id(p) for name, p in pl_module.named_parameters()}
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self.look(trainer, pl_module))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.prepare()

    def prepare(self):
        """Record the state before a change of masks."""
        targets = self.pruning.pruner.targets
        self.values = {t.name: t.parameter.detach().clone() for t in targets}
        grads = {t.name: t.parameter.grad for t in targets}
        self.grads = {name: g if g is None else g.clone() for name, g in grads.items()}

    def before_prune_event(self, trainer, pl_module, pruner):
        if pruner is self.pruning:
            self.follow_rollbacks()
            self.prepare()

    def on_prune_event(self, trainer, pl_module, event):
        if event.pruner is not self.pruning:
            return
        self.events += 1
        pruner = self.pruning.pruner
        after = {name: mask.numpy() for name, mask in pruner.masks.items()}
        before = self.kept or {name: np.ones_like(mask) for name, mask in after.items()}
        sizes = sum(mask.size for mask in after.values())
        pruned = sizes - sum(int(mask.sum()) for mask in after.values())
        assert event.after == pruned / sizes
        kind, entry = event.entry["kind"], event.entry
        assert entry["pruned"] == pruned
        assert (entry["step"], entry["epoch"]) == (trainer.global_step, trainer.current_epoch)
        moving = isinstance(self.pruning, DynamicSparseTraining)
        if kind == "prune" and not self.soft:
            assert all((after[name] <= before[name]).all() for name in after), (
                "what is pruned stays"
            )
            if not moving:
                self.check_choice(pruner, before, after)
        elif moving and kind not in ("prune", "regrow", "unprune", "dense"):
            for name in after:
                assert after[name].sum() == before[name].sum(), "no layer gains or loses"
        if self.alone and kind == "regrow":
            came = sum(int(after[name].sum() - before[name].sum()) for name in after)
            assert came == entry["count"]
        self.undone, self.kept = [*self.undone, before], after
        self.check_values(pruner, before, after, kind)
        self.look(trainer, pl_module)
        self.prepare()

    def check_choice(self, pruner, before, after):
        """The lowest scores were pruned, and exactly as many as planned."""
        granularity = self.given.get("granularity", "weight")
        own = bool(self.given.get("layers"))
        weights, limit = unit(granularity)
        total = sum(mask.size for mask in after.values())
        pruned = total - sum(int(mask.sum()) for mask in after.values())
        if not own:
            units = total / weights * limit if limit < 1 else total / weights
            assert pruned == round(pruner.target * total / weights) * weights or limit < 1
            assert pruned % weights == 0
            assert pruned <= units * weights
        for target in pruner.targets:
            if granularity != "weight":
                self.check_groups(granularity, after[target.name], target.input_dim)
        if granularity != "weight":
            return
        scores = {
            name: scores_of(self.given.get("criterion", "magnitude"), w, self.grads[name])
            for name, w in self.values.items()
        }
        if any(s is None for s in scores.values()):
            return
        names = list(after)
        if self.given.get("distribution", "global") == "global" and not own:
            expected = lowest([scores[n] for n in names], [before[n] for n in names], pruned)
        else:  # layer by layer, given how many
            counts = {n: after[n].size - int(after[n].sum()) for n in names}
            expected = [lowest([scores[n]], [before[n]], counts[n])[0] for n in names]
        for name, mask in zip(names, expected, strict=True):
            assert (mask == after[name]).all(), f"{name}: others went than the lowest"
        if self.given.get("distribution") == "uniform" and not own:
            for name, mask in after.items():
                ideal, most = pruner.target * mask.size, mask.size - 1
                low = mask.size - int(before[name].sum())
                if all(b.all() for b in before.values()) and ideal <= most and low == 0:
                    assert abs(mask.size - int(mask.sum()) - ideal) < 1 + len(after)

    def check_groups(self, granularity, mask, input_dim):
        rows = grouped(granularity, mask, input_dim)
        kept = rows.sum(1)
        if "block" in granularity:
            assert set(kept) <= {0, rows.shape[1]}, "a block goes as a whole"
        else:
            assert set(kept) <= {int(granularity[0]), rows.shape[1]}, "n of m stay"

    def check_values(self, pruner, before, after, kind):
        """Kept weights are unchanged; returning weights have their removed values or zero."""
        for target in pruner.targets:
            name, now = target.name, bits(target.parameter)
            was, gone = bits(self.values[name]), self.gone.setdefault(name, was_zero(now))
            old, new = (torch.from_numpy(masks[name]) for masks in (before, after))
            stays, went, came = old & new, old & ~new, ~old & new
            assert torch.equal(now[stays], was[stays]), f"{name}: a kept weight changed"
            gone[went] = was[went]
            if self.soft or not came.any():
                continue
            if kind == "dense":
                assert not now[came].any(), "everything comes back at zero"
            if kind == "unprune" and self.alone:
                assert torch.equal(now[came], gone[came]), f"{name}: not what was removed"

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.look(trainer, pl_module)
        assert [*pl_module.state_dict()] == self.keys
        assert {name: id(p) for name, p in pl_module.named_parameters()} == self.same

    def on_validation_batch_start(self, trainer, pl_module, *_):
        if not trainer.sanity_checking:
            self.look(trainer, pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.follow_rollbacks()
        self.check_zeros(checkpoint["state_dict"], "in a checkpoint")

    def look(self, trainer, pl_module):
        """Zero is zero, in the weights and in the optimizers."""
        self.looks += 1
        self.follow_rollbacks()
        named = dict(pl_module.named_parameters())
        self.check_zeros(named, "in the model")
        if self.soft:
            return
        for optimizer in trainer.optimizers:
            for name, kept in self.kept.items():
                for key, value in optimizer.state.get(named[name], {}).items():
                    if torch.is_tensor(value) and value.shape == kept.shape:
                        assert not value[torch.from_numpy(~kept)].any(), f"{key} of {name}"

    def follow_rollbacks(self):
        """Follow an accuracy budget that rolls back the last event without a hook."""
        taken = sum(entry["kind"] == "rollback" for entry in self.pruning.history)
        if taken > self.taken:
            self.taken = taken
            self.kept = {name: mask.numpy() for name, mask in self.pruning.masks.items()}
            if self.held:
                assert all((self.kept[n] == mask).all() for n, mask in self.undone[-1].items())
            self.prepare()

    def check_zeros(self, tensors, where):
        for name, kept in self.kept.items():
            assert not bits(tensors[name])[torch.from_numpy(~kept)].any(), f"{name} {where}"


def was_zero(like):
    return torch.zeros_like(like)


def target_count(pruner, granularity, sparsity):
    """How many weights a sparsity is, layers with a target of their own included."""
    weights, limit = unit(granularity)
    sizes = {target.name: target.parameter.numel() for target in pruner.targets}
    own = {name: own for name, own in pruner.layer_targets.items() if sparsity}
    free = sum(size for name, size in sizes.items() if name not in own)
    parts = [(sparsity, free), *((own[name], sizes[name]) for name in own)]
    return sum(round(s / limit * (size * limit / weights)) * weights for s, size in parts)
