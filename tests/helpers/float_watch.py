# SPDX-License-Identifier: MIT
"""The zero-checking callback for weights of every floating-point dtype."""

from tiny_fits import WEIGHTS, Watch, magnitude_masks, weights


def pruned(module):
    """How many weights are exactly +0.0, whatever their type."""
    return sum(int(((p == 0) & ~p.signbit()).sum()) for p in weights(module).values())


class AnyWatch(Watch):
    """Checks every weight, and the state that has its shape, by value and sign."""

    def on_prune_event(self, trainer, pl_module, event):
        self.seen.append((event.step, round(event.after, 6)))
        exact = {name: p.double() for name, p in self.before.items()}
        total = sum(p.numel() for p in exact.values())
        assert total == WEIGHTS
        self.kept = magnitude_masks(exact, round(event.after * total))
        self.look(trainer, pl_module)

    def check(self, tensors, where):
        for name, kept in self.kept.items():
            gone = tensors[name].detach().cpu()[~kept]
            assert tensors[name].isfinite().all(), f"{name} {where}"
            assert not gone.any(), f"{name} {where}"
            assert not gone.signbit().any(), f"{name} {where}: -0.0"
