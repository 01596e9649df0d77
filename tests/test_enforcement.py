# SPDX-License-Identifier: MIT
"""Zero is zero, whatever the optimizer; plain PyTorch through `regrow.enforce`."""

import copy
from functools import partial

import pytest
import torch
from torch import nn, optim

import regrow
from regrow.enforcement import Enforcer, enforce, working_mask
from regrow.errors import ConfigError, StateError

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
    "muon": partial(optim.Muon, lr=0.01),
    "nadam": partial(optim.NAdam, weight_decay=0.1),
    "nadam foreach": partial(optim.NAdam, foreach=True, decoupled_weight_decay=True),
    "radam": partial(optim.RAdam, weight_decay=0.1),
    "rmsprop": partial(optim.RMSprop, momentum=0.9, centered=True, weight_decay=0.1),
    "rmsprop foreach": partial(optim.RMSprop, momentum=0.9, foreach=True),
    "rprop": partial(optim.Rprop),
}


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


def test_sparse_gradients_are_refused():
    model = nn.Embedding(5, 3, sparse=True)
    masks = {"weight": torch.rand(5, 3) < 0.5}
    optimizer = optim.SparseAdam(model.parameters())
    enforce(model, masks, optimizer)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(StateError, match="sparse gradient"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["sgd momentum decay", "adam foreach", "adamw fused"])
def test_other_precisions(name, dtype):
    model = network(dtype)
    optimizer = made(name, model)
    if "eps" in optimizer.defaults:  # the usual 1e-8 is 0 in half precision
        optimizer.param_groups[0]["eps"] = 1e-3
    masks = masks_of(model, 0.3)
    with enforce(model, masks, optimizer):
        for _ in range(4):
            train_step(model, optimizer, masks, float("nan"))
            assert_zero(model, optimizer, masks)


def test_loss_scaling_with_half_precision_autocast():
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


def test_a_closure_is_given_by_name_or_position_and_its_loss_comes_back():
    model = network()
    optimizer = made("sgd momentum decay", model)
    masks = masks_of(model, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 6)).square().mean()
        loss.backward()
        return loss

    with enforce(model, masks, optimizer):
        first, second = optimizer.step(closure), optimizer.step(closure=closure)
    assert second.item() < first.item()
    assert_zero(model, optimizer, masks)


def test_a_learning_rate_schedule_beside_it():
    model = network()
    optimizer = made("lbfgs", model)
    schedule = optim.lr_scheduler.StepLR(optimizer, 1)
    masks = masks_of(model, 0.5)
    with enforce(model, masks, optimizer):
        train_step(model, optimizer, masks)
        schedule.step()
        train_step(model, optimizer, masks)
    assert_zero(model, optimizer, masks)


def test_channels_last():
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    optimizer = optim.AdamW(model.parameters())
    masks = {"weight": torch.rand(6, 4, 3, 3) < 0.5}
    with enforce(model, masks, optimizer):
        for _ in range(3):
            model(torch.randn(2, 4, 5, 5)).sum().backward()
            optimizer.step()
            assert_zero(model, optimizer, masks)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_module_is_left_alone():
    model = network()
    keys, objects = list(model.state_dict()), list(model.parameters())
    optimizer = made("adamw", model)
    masks = masks_of(model, 0.5)
    with enforce(model, masks, optimizer):
        train_step(model, optimizer, masks)
        twin = copy.deepcopy(model)
        assert list(twin.state_dict()) == list(model.state_dict()) == keys
        assert all(a is b for a, b in zip(model.parameters(), objects, strict=True))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert set(optimizer.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert torch.equal(twin[0].weight, model[0].weight)


def test_a_removed_handle_lets_weights_grow_back():
    model = network()
    optimizer = made("sgd", model)
    masks = masks_of(model, 0.5)
    handle = enforce(model, masks, optimizer)
    handle.remove()
    handle.remove()  # twice does no harm
    train_step(model, optimizer, masks)
    assert model[0].weight[~masks["0.weight"]].any()


def test_two_optimizers():
    model = network()
    optimizers = [optim.SGD(model[0].parameters(), 0.1), optim.Adam(model[2].parameters())]
    masks = masks_of(model, 0.5)
    with enforce(model, masks, optimizers):
        for _ in range(3):
            model(torch.randn(4, 6)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    for optimizer in optimizers:
        assert_zero(model, optimizer, masks)


def test_two_pruners_add_their_zeros():
    model = network()
    optimizer = made("sgd momentum decay", model)
    one, two = masks_of(model, 0.6, seed=1), masks_of(model, 0.6, seed=2)
    with enforce(model, one, optimizer), enforce(model, two, optimizer):
        train_step(model, optimizer, {})
    assert_zero(model, optimizer, one)
    assert_zero(model, optimizer, two)


def test_a_compiled_model_is_seen_through():
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = made("adamw", compiled)
    masks = masks_of(model, 0.5)
    with enforce(compiled, masks, optimizer):
        for _ in range(2):
            compiled(torch.randn(4, 6)).sum().backward()
            optimizer.step()
    assert_zero(model, optimizer, masks)


def test_a_tied_parameter_is_known_by_each_of_its_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    masks = {"1.weight": torch.eye(4, dtype=torch.bool)}
    with enforce(model, masks, optim.SGD(model.parameters(), 0.1)):
        assert model[0].weight[~masks["1.weight"]].eq(0).all()


def test_whatever_stood_there_becomes_plus_zero():
    weight = nn.Parameter(torch.tensor([float("nan"), float("inf"), -0.0, -3.0, 2.0]))
    weight.grad = torch.tensor([float("nan"), -float("inf"), -0.0, 1.0, 2.0])
    enforcer = Enforcer({"w": weight})
    enforcer.set_mask("w", torch.tensor([False, False, False, False, True]))
    enforcer.weights()
    enforcer.gradients()
    for tensor in (weight.detach(), weight.grad):
        assert tensor.tolist() == [0, 0, 0, 0, 2]
        assert not tensor.signbit().any()


def test_the_working_mask_follows_the_parameter():
    """Casting swaps the data below the parameter; the mask is remade, not lost."""
    model = nn.Linear(4, 4)
    enforcer = Enforcer({"weight": model.weight})
    mask = torch.eye(4, dtype=torch.bool)
    enforcer.set_mask("weight", mask)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float32):
        model.to(dtype)
        nn.init.ones_(model.weight)
        enforcer.weights()
        assert torch.equal(model.weight, mask.to(dtype))
        assert torch.equal(enforcer.mask("weight"), mask)
        assert enforcer.kept("weight").itemsize == dtype.itemsize


def test_a_full_mask_costs_nothing():
    enforcer = Enforcer({"w": nn.Parameter(torch.ones(3))})
    enforcer.set_mask("w", torch.tensor([True, False, True]))
    enforcer.set_mask("w", torch.ones(3, dtype=torch.bool))
    assert enforcer.kept("w") is None
    assert enforcer.mask("w").all()


def test_the_working_mask_has_the_parameters_width_and_strides():
    weight = torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    mask = torch.rand(2, 3, 4, 5) < 0.5
    working = working_mask(mask, weight)
    assert working.dtype == torch.int16
    assert working.stride() == weight.stride()
    assert torch.equal(working, -mask.to(torch.int16))


def test_state_of_another_width_is_masked_too():
    """Mixed-precision optimizers keep float32 state beside half-precision weights."""
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = optim.SGD([weight], 0.1)
    optimizer.state[weight] = {"master": torch.full((2, 2), float("nan")), "step": torch.tensor(3)}
    enforcer = Enforcer({"w": weight})
    enforcer.set_mask("w", torch.zeros(2, 2, dtype=torch.bool))
    enforcer.state([optimizer])
    assert not optimizer.state[weight]["master"].any()
    assert int(optimizer.state[weight]["step"]) == 3


def test_masks_that_do_not_fit_are_refused_by_name():
    model = network()
    sgd = made("sgd", model)
    with pytest.raises(StateError, match=r"9.weight is masked but not selected here"):
        enforce(model, {"9.weight": torch.ones(2, dtype=torch.bool)}, sgd)
    with pytest.raises(StateError, match=r"0.weight is \(8, 6\), its mask \(6, 8\)"):
        enforce(model, {"0.weight": torch.ones(6, 8, dtype=torch.bool)}, sgd)
    with pytest.raises(ConfigError, match=r"0.weight must be a bool tensor"):
        enforce(model, {"0.weight": torch.ones(8, 6)}, sgd)


def test_prune_then_enforce():
    model = network()
    optimizer = made("adamw", model)
    masks = regrow.prune(model, 0.75)
    with regrow.enforce(model, masks, optimizer):
        for _ in range(3):
            train_step(model, optimizer, masks)
            assert_zero(model, optimizer, masks)
    assert sum(int((model.get_parameter(n) == 0).sum()) for n in masks) == 54
