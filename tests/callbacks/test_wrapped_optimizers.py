# SPDX-License-Identifier: MIT
"""Pruned weights stay zero under optimizers with their own step or an inner optimizer."""

import warnings
from collections import defaultdict

import pytest
import torch
from tiny_fits import Net, fit, loader, weights
from torch import nn, optim

import regrow
from regrow import MagnitudePruning, OneShot


class SAM(optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021, algorithm 1), in two steps."""

    def __init__(self, params, rho=0.05, **kw):
        super().__init__(params, {"rho": rho, **kw})
        self.base_optimizer = optim.SGD(self.param_groups, **kw)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        pairs = [(p, p.grad) for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([grad.norm() for _, grad in pairs]).norm() + 1e-12
        for parameter, grad in pairs:
            self.state[parameter]["before"] = parameter.clone()
            parameter.add_(grad, alpha=0.05 / float(norm))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(self.state[parameter]["before"])
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()
        return loss


class ManualSAM(Net):
    def __init__(self):
        super().__init__(make=lambda parameters: SAM(parameters, lr=0.1, momentum=0.9))
        self.automatic_optimization = False
        self.live_inside = []  # pruned weights that are not zero in the second forward

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        self.manual_backward(self.loss(batch))
        optimizer.first_step()
        if self.masks is not None and self.masks.sparsity:
            self.live_inside.append(live(self, self.masks.masks))
        self.manual_backward(self.loss(batch))
        optimizer.second_step()

    masks = None


class Lookahead:
    """Slow weights beside fast ones (Zhang et al. 2019); without hooks of torch."""

    def __init__(self, inner, k=2, alpha=0.5):
        self.optimizer, self.k, self.alpha, self.count = inner, k, alpha, 0
        self.param_groups, self.defaults = inner.param_groups, inner.defaults
        self.state = defaultdict(dict)
        self.slow = [[p.detach().clone() for p in g["params"]] for g in self.param_groups]

    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            for group, slow in zip(self.param_groups, self.slow, strict=True):
                for parameter, value in zip(group["params"], slow, strict=True):
                    value.add_(parameter.detach() - value, alpha=self.alpha)
                    parameter.data.copy_(value)
        return loss

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)


class SubclassedLookahead(Lookahead, optim.Optimizer):
    """As packages write it: a subclass that never calls torch's constructor."""

    def __init__(self, inner):
        super().__init__(inner)
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}


class HidesItsOptimizer(Net):
    """Steps an optimizer that is held in a closure: no attribute leads to it."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        inner = optim.SGD(self.body.parameters(), lr=0.1, momentum=0.9)

        def step():
            for group in inner.param_groups:
                for parameter in group["params"]:
                    parameter.data.sub_(0.1 * parameter.grad + 0.01)

        self.step = step

    def training_step(self, batch, batch_idx):
        self.zero_grad()
        self.manual_backward(self.loss(batch))
        self.step()


def live(module, masks):
    return sum(int((weights(module)[name][~masks[name]] != 0).sum()) for name in masks)


def quiet_fit(module, masks, **kw):
    counts = []

    class Count(regrow.callbacks.core.base.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *_):
            counts.append(live(pl_module, masks.masks) if masks.sparsity else 0)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, masks, Count(), val=loader(), **kw)
    return counts, [str(w.message) for w in caught]


def test_pruned_weights_stay_zero_with_sam_in_manual_optimisation():
    module, masks = ManualSAM(), MagnitudePruning(0.75, schedule=OneShot("1ep"))
    module.masks = masks
    counts, texts = quiet_fit(module, masks, max_epochs=3)
    assert counts
    assert not any(counts)
    assert module.live_inside  # the perturbed network is as sparse as the other
    assert not any(module.live_inside)
    assert not [text for text in texts if "written" in text]


def test_sam_in_manual_optimisation_equals_sam_on_the_masked_network():
    """Written out by hand: gradients are masked before each of the two steps."""
    module, masks = ManualSAM(), MagnitudePruning(0.75, schedule=OneShot(0), keep_removed=False)
    fit(module, masks, max_epochs=2)
    by_hand = Net()
    keep = masks.masks
    parameters = dict(by_hand.named_parameters())
    momentum = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def gradients(batch):
        found = torch.autograd.grad(by_hand.loss(batch), list(parameters.values()))
        grads = dict(zip(parameters, found, strict=True))
        return {n: g * keep[n] if n in keep else g for n, g in grads.items()}

    with torch.no_grad():
        for name in keep:
            parameters[name].mul_(keep[name])
    for _ in range(2):
        for batch in loader():
            first = gradients(batch)
            norm = torch.stack([g.norm() for g in first.values()]).norm() + 1e-12
            before = {n: p.detach().clone() for n, p in parameters.items()}
            with torch.no_grad():
                for name, grad in first.items():
                    parameters[name].add_(grad, alpha=0.05 / float(norm))
            second = gradients(batch)
            with torch.no_grad():
                for name, grad in second.items():
                    momentum[name].mul_(0.9).add_(grad)
                    parameters[name].copy_(before[name] - 0.1 * momentum[name])
    for name, value in module.named_parameters():
        torch.testing.assert_close(value, parameters[name])


def test_pruned_weights_stay_zero_with_sam_in_automatic_optimisation():
    module = Net(make=lambda parameters: SAM(parameters, lr=0.1, momentum=0.9))
    masks = MagnitudePruning(0.75, schedule=OneShot(0))
    counts, texts = quiet_fit(module, masks, max_epochs=3)
    assert counts
    assert not any(counts)
    assert not [text for text in texts if "written" in text]


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("kind", [Lookahead, SubclassedLookahead])
def test_pruned_weights_stay_zero_with_lookahead(manual, raw, kind):
    class Module(Net):
        def __init__(self):
            super().__init__(make=lambda parameters: kind(optim.SGD(parameters, lr=0.1)))
            self.automatic_optimization = not manual
            self.live = []

        def training_step(self, batch, batch_idx):
            if masks.sparsity:
                self.live.append(live(self, masks.masks))
            if not manual:
                return super().training_step(batch, batch_idx)
            optimizer = self.optimizers(use_pl_optimizer=not raw)
            optimizer = optimizer[0] if isinstance(optimizer, list) else optimizer
            self.zero_grad()
            self.manual_backward(self.loss(batch))
            return optimizer.step() if raw else optimizer.step(lambda: None)

    module, masks = Module(), MagnitudePruning(0.75, schedule=OneShot(0.2))
    counts, _ = quiet_fit(module, masks, max_epochs=3)
    assert counts
    assert not any(counts)
    assert module.live
    assert not any(module.live)


def test_weights_changed_without_an_optimizer_are_detected_within_the_epoch():
    module, masks = HidesItsOptimizer(), MagnitudePruning(0.75, schedule=OneShot(0))
    counts, texts = quiet_fit(module, masks, max_epochs=3)
    assert not any(counts)
    (text,) = [text for text in texts if "written" in text]
    assert "body.0.weight" in text
    assert "as batch" in text


@pytest.mark.parametrize("which", ["sam", Lookahead, SubclassedLookahead])
def test_enforce_masks_after_steps_of_inner_optimizers(which):
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    inputs, labels = torch.randn(32, 6), torch.randint(3, (32,))
    parameters = net.parameters()
    optimizer = (
        SAM(parameters, lr=0.1, momentum=0.9)
        if which == "sam"
        else which(optim.SGD(parameters, lr=0.1, momentum=0.9))
    )
    masks = regrow.prune(net, 0.75)
    named = dict(net.named_parameters())

    def alive():
        return sum(int((named[name][~masks[name]] != 0).sum()) for name in masks)

    def backward():
        nn.functional.cross_entropy(net(inputs), labels).backward()

    with regrow.enforce(net, masks, optimizer):
        for _ in range(6):
            backward()
            if which == "sam":
                optimizer.first_step()
                assert alive() == 0
                backward()
                optimizer.second_step()
            else:
                optimizer.step()
                optimizer.zero_grad()
            assert alive() == 0
