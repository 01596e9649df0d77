# SPDX-License-Identifier: MIT
"""The core without a Trainer: random mask changes compared with NumPy dictionaries."""

import io
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from fuzz_promises import bits
from fuzz_reference import lowest, numbers
from fuzz_sizes import few, many
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn, optim

from regrow.masks.masks import Masks
from regrow.pruning.config import PruningConfig
from regrow.pruning.drop_and_grow import drop_and_grow
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import RegrowError

OPTIMIZERS = {
    "momentum": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "AdamW": partial(optim.AdamW, lr=0.02, amsgrad=True),
    "Rprop": partial(optim.Rprop, lr=0.01),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.5),
    "Adamax": partial(optim.Adamax, lr=0.01),
}


class Core(RuleBasedStateMachine):
    """A pruner and what must be true of it: kept places, removed values, all by layer."""

    @initialize(
        widths=st.lists(st.integers(1, 7), min_size=2, max_size=4),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
        optimizer=st.sampled_from(sorted(OPTIMIZERS)),
        keep=st.sampled_from([True, True, "moments", False]),
        distribution=st.sampled_from(["global", "uniform", "erk"]),
        ties=st.booleans(),
    )
    def begin(self, widths, dtype, optimizer, keep, distribution, ties):
        torch.manual_seed(0)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        self.model = nn.Sequential(*layers).to(dtype)
        if ties:  # few values
            for parameter in self.model.parameters():
                parameter.data = (parameter.data * 4).round() / 4
        self.method = PruningConfig(distribution=distribution)
        self.keep = keep
        self.pruner = Pruner(self.model, self.method, keep_removed=keep)
        self.names = [target.name for target in self.pruner.targets]
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.hook = self.pruner.enforcer.hook(self.optimizer)
        self.ids = {name: id(p) for name, p in self.model.named_parameters()}
        self.kept = {name: np.ones(self.weight(name).shape, bool) for name in self.names}
        self.gone = {name: bits(self.weight(name)).clone() for name in self.names}

    def weight(self, name):
        return self.model.get_parameter(name)

    def size(self):
        return sum(mask.size for mask in self.kept.values())

    def pruned(self):
        return self.size() - sum(int(mask.sum()) for mask in self.kept.values())

    def changed(self, before, kept):
        """Takes in new masks: what went is remembered, what stayed has not changed a bit."""
        for name in self.names:
            old, new = (torch.from_numpy(masks[name]) for masks in (self.kept, kept))
            now, went = bits(self.weight(name)), old & ~new
            assert torch.equal(now[old & new], before[name][old & new])
            self.gone[name][went] = before[name][went]
        self.kept = kept

    def found(self):
        return {name: mask.numpy().copy() for name, mask in self.pruner.masks.items()}

    def snapshot(self):
        return {name: bits(self.weight(name)).clone() for name in self.names}

    def attempt(self, act):
        """The weights before, and whether the act was refused; then nothing has changed."""
        before, masks, events = self.snapshot(), self.found(), len(self.pruner.history)
        refused = None
        try:
            act()
        except RegrowError as error:
            refused = str(error)
        if refused is not None:
            same = {name: torch.equal(bits(self.weight(name)), before[name]) for name in self.names}
            assert refused
            assert all(same.values())
            assert all((self.found()[name] == masks[name]).all() for name in self.names)
            assert len(self.pruner.history) == events
        return before, refused is not None

    @rule(sparsity=st.one_of(st.sampled_from([0.0, 0.5, 0.9]), st.floats(0, 0.999)))
    def prune_to(self, sparsity):
        scores = {name: np.abs(numbers(self.weight(name))) for name in self.names}
        before, refused = self.attempt(lambda: self.pruner.prune_to(sparsity, [self.optimizer]))
        count = round(sparsity * self.size())
        reachable = self.pruned() <= count <= self.size() - len(self.names)
        if refused:
            assert sparsity
            assert not (reachable and self.method.distribution == "global")
            return
        kept = self.found()
        if sparsity == 0:
            assert all(mask.all() for mask in kept.values())
            assert not any(
                bits(self.weight(name))[torch.from_numpy(~self.kept[name])].any()
                for name in self.names
            )
        else:
            assert self.size() - sum(int(mask.sum()) for mask in kept.values()) == count
            parts = [[name] for name in self.names]
            if self.method.distribution == "global":
                parts = [self.names]
            for names in parts:
                went = sum(kept[n].size - int(kept[n].sum()) for n in names)
                args = [scores[n] for n in names], [self.kept[n] for n in names], went
                for name, mask in zip(names, lowest(*args), strict=True):
                    assert (mask == kept[name]).all()
        self.changed(before, kept)

    @rule(data=st.data())
    def set_masks(self, data):
        masks = {
            name: np.array(
                data.draw(st.lists(st.booleans(), min_size=mask.size, max_size=mask.size)), bool
            ).reshape(mask.shape)
            for name, mask in self.kept.items()
        }
        given = {name: torch.from_numpy(mask) for name, mask in masks.items()}
        before = self.snapshot()
        self.pruner.set_masks(given)
        self.pruner.enforce([self.optimizer])
        self.changed(before, masks)

    @precondition(lambda self: self.keep)
    @rule(data=st.data())
    def unprune(self, data):
        names = data.draw(st.one_of(st.none(), st.sampled_from(self.names)))
        before, refused = self.attempt(lambda: self.pruner.unprune(names, [self.optimizer]))
        assert not refused
        chosen = self.names if names is None else [names]
        for name in chosen:
            back = torch.from_numpy(~self.kept[name])
            assert torch.equal(bits(self.weight(name))[back], self.gone[name][back])
        kept = {n: np.ones_like(m) if n in chosen else m for n, m in self.kept.items()}
        self.changed(before, kept)

    @rule(
        fraction=st.floats(0, 1),
        by=st.sampled_from(["random", "removed"]),
        init=st.sampled_from(["zero", "he", "removed", "survivors", "xavier"]),
    )
    def regrow(self, fraction, by, init):
        before, refused = self.attempt(
            lambda: self.pruner.regrow(fraction, by=by, init=init, optimizers=[self.optimizer])
        )
        if refused:
            assert not self.keep or "removed" not in (by, init)
            return
        kept = self.found()
        came = {name: kept[name] & ~self.kept[name] for name in self.names}
        assert all((kept[name] >= self.kept[name]).all() for name in self.names)
        assert sum(int(places.sum()) for places in came.values()) == round(fraction * self.pruned())
        for name, places in came.items():
            back = torch.from_numpy(places)
            if init == "removed":
                assert torch.equal(bits(self.weight(name))[back], self.gone[name][back])
            restored = self.keep == "moments" and init == "removed"
            for value in self.states(name):  # Rprop's step sizes begin anew
                assert restored or not value[back].any() or isinstance(self.optimizer, optim.Rprop)
        self.changed(before, kept)

    @rule(share=st.floats(0, 0.9), init=st.sampled_from(["zero", "he"]))
    def drop_and_grow(self, share, init):
        before, refused = self.attempt(
            lambda: drop_and_grow(
                self.pruner, share, grow="random", init=init, optimizers=[self.optimizer]
            )
        )
        assert not refused
        kept = self.found()
        for name, mask in kept.items():
            assert mask.sum() == self.kept[name].sum()
        self.changed(before, kept)

    @rule(steps=st.integers(1, 3))
    def train(self, steps):
        dtype = self.weight(self.names[0]).dtype
        for _ in range(steps):
            self.optimizer.zero_grad()
            inputs = torch.randn(4, self.weight(self.names[0]).shape[1], dtype=dtype)
            self.model(inputs).float().square().mean().backward()
            self.pruner.enforcer.prepare()
            self.optimizer.step()

    @rule()
    def save_and_load(self):
        """Through a file, into a new pruner of the same model."""
        file = io.BytesIO()
        torch.save(self.pruner.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        history = list(self.pruner.history)
        self.hook.remove()
        self.pruner = Pruner(self.model, self.method, keep_removed=self.keep)
        self.pruner.load_state_dict(state)
        self.hook = self.pruner.enforcer.hook(self.optimizer)
        assert self.pruner.history == history

    @rule()
    def pack(self):
        masks = self.pruner.masks
        again = Masks.unpack(masks.pack())
        assert again.digest() == masks.digest()
        assert (again.total, again.pruned) == (self.size(), self.pruned())

    def states(self, name):
        parameter = self.weight(name)
        for value in self.optimizer.state.get(parameter, {}).values():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                yield value

    @invariant()
    def zero_is_zero(self):
        if not hasattr(self, "kept"):
            return
        for name, kept in self.kept.items():
            assert (self.pruner.masks[name].numpy() == kept).all()
            off = torch.from_numpy(~kept)
            assert not bits(self.weight(name))[off].any()
            for value in self.states(name):
                assert not value[off].any()
        assert self.pruner.pruned == self.pruned()
        assert self.pruner.sparsity == self.pruned() / self.size()
        assert {name: id(p) for name, p in self.model.named_parameters()} == self.ids


class Often(Core):
    """The same, many times."""


TestCore = Core.TestCase
TestCore.settings = few(25, stateful_step_count=15)
TestOften = pytest.mark.slow(Often.TestCase)
TestOften.settings = many(1000, stateful_step_count=25)
