# SPDX-License-Identifier: MIT
"""Pruned weights are zero under every optimizer and precision, through `regrow.enforce`."""

from functools import partial

import pytest
import torch
from torch import nn, optim

from regrow.pruning.functional import enforce

OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.1),
    "sgd momentum decay": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd fused": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "sgd maximize": partial(optim.SGD, lr=0.01, momentum=0.9, maximize=True),
    "adam": partial(optim.Adam, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adam foreach": partial(optim.Adam, lr=0.01, foreach=True),
    "adam fused": partial(optim.Adam, lr=0.01, fused=True, amsgrad=True),
    "adamw": partial(optim.AdamW, lr=0.01),
    "adamw foreach": partial(optim.AdamW, lr=0.01, foreach=True),
    "adamw fused": partial(optim.AdamW, lr=0.01, fused=True),
    "adadelta": partial(optim.Adadelta, weight_decay=0.1),
    "adafactor": partial(optim.Adafactor, weight_decay=0.1),
    "adagrad": partial(optim.Adagrad, weight_decay=0.1, initial_accumulator_value=0.1),
    "adagrad fused": partial(optim.Adagrad, fused=True),
    "adamax": partial(optim.Adamax, weight_decay=0.1),
    "asgd": partial(optim.ASGD, weight_decay=0.1, t0=0),
    "lbfgs": partial(optim.LBFGS, max_iter=4, history_size=5),
    "lbfgs wolfe": partial(optim.LBFGS, max_iter=4, line_search_fn="strong_wolfe"),
    "nadam": partial(optim.NAdam, weight_decay=0.1),
    "nadam foreach": partial(optim.NAdam, foreach=True, decoupled_weight_decay=True),
    "radam": partial(optim.RAdam, weight_decay=0.1),
    "rmsprop": partial(optim.RMSprop, momentum=0.9, centered=True, weight_decay=0.1),
    "rmsprop foreach": partial(optim.RMSprop, momentum=0.9, foreach=True),
    "rprop": partial(optim.Rprop),
}
if hasattr(optim, "Muon"):  # from torch 2.9
    OPTIMIZERS["muon"] = partial(optim.Muon, lr=0.01)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def masks_of(model, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape, generator=generator) < density
        for name, p in model.named_parameters()
        if name.endswith("weight")
    }


def train_step(model, optimizer, masks, poison=None):
    """One step; `poison` is put into the gradients of pruned weights."""
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(16, 6).to(dtype)

    def closure():
        optimizer.zero_grad()
        loss = (model(inputs) - 1).square().mean()
        loss.backward()
        named = dict(model.named_parameters())
        for name, mask in masks.items() if poison is not None else ():
            named[name].grad[~mask] = poison
        return loss

    if not isinstance(optimizer, optim.LBFGS):
        closure()
        optimizer.step()
    else:
        optimizer.step(closure)


def tensors(values):
    for value in values:
        if torch.is_tensor(value):
            yield value
        elif isinstance(value, list):
            yield from tensors(value)


def assert_zero(model, optimizer, masks):
    """Pruned weights are +0.0, and so is all state of their places; everything is finite."""
    named = dict(model.named_parameters())
    for name, mask in masks.items():
        weight = named[name].detach()
        assert weight.isfinite().all()
        assert not weight[~mask].any()
        assert not weight[~mask].signbit().any(), "a -0.0"
        assert weight[mask].any()
        for key, value in optimizer.state[named[name]].items():
            if torch.is_tensor(value) and value.shape == weight.shape:
                assert not value[~mask].any(), f"{key} of {name}"
    parameters = optimizer.param_groups[0]["params"]
    if isinstance(optimizer, optim.LBFGS):
        sizes = [p.numel() for p in parameters]
        by_id = {id(named[name]): mask for name, mask in masks.items()}
        flats = [v for v in tensors(optimizer.state[parameters[0]].values()) if v.dim() == 1]
        assert flats
        for flat in flats:
            for p, part in zip(parameters, flat.split(sizes), strict=True):
                if id(p) in by_id:
                    assert not part[~by_id[id(p)].reshape(-1)].any()


def made(name, model):
    parameters = [p for p in model.parameters() if name != "muon" or p.dim() == 2]
    return OPTIMIZERS[name](parameters)


@pytest.mark.parametrize("poison", [None, float("nan"), -float("inf")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_is_zero_for_every_optimizer(name, poison):
    """Dense steps first, so that there is momentum to forget; then masks, then fewer weights."""
    model = network()
    optimizer = made(name, model)
    for _ in range(3):
        train_step(model, optimizer, {})
    few = masks_of(model, 0.5)
    fewer = {key: mask & masks_of(model, 0.4, seed=1)[key] for key, mask in few.items()}
    for masks in (few, fewer):
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        with enforce(model, masks, optimizer):
            assert_zero(model, optimizer, masks)
            for _ in range(4):
                train_step(model, optimizer, masks, poison)
                assert_zero(model, optimizer, masks)
        moved = [
            not torch.equal(p[masks[key]], before[key][masks[key]])
            for key, p in model.named_parameters()
            if key in masks
        ]
        assert all(moved), "kept weights go on learning"


def test_every_optimizer_of_torch_is_tested():
    tested = {factory.func for factory in OPTIMIZERS.values()}
    offered = {
        kind
        for kind in vars(optim).values()
        if isinstance(kind, type) and issubclass(kind, optim.Optimizer)
    }
    assert offered - tested == {optim.Optimizer, optim.SparseAdam}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["sgd momentum decay", "adam foreach", "adamw fused"])
def test_pruned_weights_are_zero_in_other_precisions(name, dtype):
    model = network(dtype)
    optimizer = made(name, model)
    if "eps" in optimizer.defaults:  # the usual 1e-8 is 0 in half precision
        optimizer.param_groups[0]["eps"] = 1e-3
    masks = masks_of(model, 0.3)
    with enforce(model, masks, optimizer):
        for _ in range(4):
            train_step(model, optimizer, masks, float("nan"))
            assert_zero(model, optimizer, masks)


def test_pruned_weights_are_zero_under_autocast_and_loss_scaling():
    model = network()
    optimizer = made("adamw", model)
    scaler = torch.amp.GradScaler("cpu", init_scale=128)
    masks = masks_of(model, 0.3)
    with enforce(model, masks, optimizer):
        for _ in range(4):
            with torch.autocast("cpu", torch.float16):
                loss = model(torch.randn(16, 6)).float().square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            assert_zero(model, optimizer, masks)


def test_pruned_weights_are_zero_with_a_learning_rate_schedule():
    model = network()
    optimizer = made("lbfgs", model)
    schedule = optim.lr_scheduler.StepLR(optimizer, 1)
    masks = masks_of(model, 0.5)
    with enforce(model, masks, optimizer):
        train_step(model, optimizer, masks)
        schedule.step()
        train_step(model, optimizer, masks)
    assert_zero(model, optimizer, masks)
