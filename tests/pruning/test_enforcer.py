# SPDX-License-Identifier: MIT
"""Masks applied to weights, gradients and state; `regrow.enforce` around plain PyTorch."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import regrow
from regrow.pruning.enforcer import MaskEnforcer, SoftMaskEnforcer, working_mask
from regrow.pruning.functional import enforce
from regrow.utils.errors import ConfigError, StateError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def masks_of(model, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape, generator=generator) < density
        for name, p in model.named_parameters()
        if name.endswith("weight")
    }


def adamw(model):
    return optim.AdamW(model.parameters(), lr=0.01)


def sgd(model):
    return optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def train_step(model, optimizer):
    optimizer.zero_grad()
    (model(torch.randn(16, 6)) - 1).square().mean().backward()
    optimizer.step()


def assert_zero(model, optimizer, masks):
    """Pruned weights are +0.0, and so is all state of their places."""
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        assert not parameter.detach()[~mask].any()
        assert not parameter.detach()[~mask].signbit().any(), "a -0.0"
        for value in optimizer.state[parameter].values():
            if torch.is_tensor(value) and value.shape == mask.shape:
                assert not value[~mask].any()


def test_sparse_gradients_raise():
    model = nn.Embedding(5, 3, sparse=True)
    masks = {"weight": torch.rand(5, 3) < 0.5}
    optimizer = optim.SparseAdam(model.parameters())
    enforce(model, masks, optimizer)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(StateError, match="sparse gradient"):
        optimizer.step()


def test_closure_may_be_positional_or_keyword_and_its_loss_is_returned():
    model = network()
    optimizer = sgd(model)
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


def test_masks_hold_in_channels_last_layout():
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    optimizer = optim.AdamW(model.parameters())
    masks = {"weight": torch.rand(6, 4, 3, 3) < 0.5}
    with enforce(model, masks, optimizer):
        for _ in range(3):
            model(torch.randn(2, 4, 5, 5)).sum().backward()
            optimizer.step()
            assert_zero(model, optimizer, masks)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_module_keys_objects_and_hooks_are_unchanged():
    model = network()
    keys, objects = list(model.state_dict()), list(model.parameters())
    optimizer = adamw(model)
    masks = masks_of(model, 0.5)
    with enforce(model, masks, optimizer):
        train_step(model, optimizer)
        twin = copy.deepcopy(model)
        assert list(twin.state_dict()) == list(model.state_dict()) == keys
        assert all(a is b for a, b in zip(model.parameters(), objects, strict=True))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert set(optimizer.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert torch.equal(twin[0].weight, model[0].weight)


def test_weights_change_after_the_handle_is_removed():
    model = network()
    optimizer = sgd(model)
    masks = masks_of(model, 0.5)
    handle = enforce(model, masks, optimizer)
    handle.remove()
    handle.remove()  # twice does no harm
    train_step(model, optimizer)
    assert model[0].weight[~masks["0.weight"]].any()


def test_masks_hold_under_two_optimizers():
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


def test_zeros_of_two_pruners_add_up():
    model = network()
    optimizer = sgd(model)
    one, two = masks_of(model, 0.6, seed=1), masks_of(model, 0.6, seed=2)
    with enforce(model, one, optimizer), enforce(model, two, optimizer):
        train_step(model, optimizer)
    assert_zero(model, optimizer, one)
    assert_zero(model, optimizer, two)


def test_masks_hold_in_a_compiled_model():
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = adamw(compiled)
    masks = masks_of(model, 0.5)
    with enforce(compiled, masks, optimizer):
        for _ in range(2):
            compiled(torch.randn(4, 6)).sum().backward()
            optimizer.step()
    assert_zero(model, optimizer, masks)


def test_tied_parameter_is_found_by_each_of_its_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    masks = {"1.weight": torch.eye(4, dtype=torch.bool)}
    with enforce(model, masks, optim.SGD(model.parameters(), 0.1)):
        assert model[0].weight[~masks["1.weight"]].eq(0).all()


def test_nan_inf_and_minus_zero_at_pruned_places_become_plus_zero():
    weight = nn.Parameter(torch.tensor([float("nan"), float("inf"), -0.0, -3.0, 2.0]))
    weight.grad = torch.tensor([float("nan"), -float("inf"), -0.0, 1.0, 2.0])
    enforcer = MaskEnforcer({"w": weight})
    enforcer.set_mask("w", torch.tensor([False, False, False, False, True]))
    enforcer.weights()
    enforcer.gradients()
    for tensor in (weight.detach(), weight.grad):
        assert tensor.tolist() == [0, 0, 0, 0, 2]
        assert not tensor.signbit().any()


def test_working_mask_is_rebuilt_when_the_dtype_changes():
    """Casting swaps the data below the parameter; the mask is remade, not lost."""
    model = nn.Linear(4, 4)
    enforcer = MaskEnforcer({"weight": model.weight})
    mask = torch.eye(4, dtype=torch.bool)
    enforcer.set_mask("weight", mask)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float32):
        model.to(dtype)
        nn.init.ones_(model.weight)
        enforcer.weights()
        assert torch.equal(model.weight, mask.to(dtype))
        assert torch.equal(enforcer.mask("weight"), mask)
        assert enforcer.kept("weight").itemsize == dtype.itemsize


def test_masks_and_dense_values_follow_a_parameter_to_its_device():
    """ "meta" stands for an accelerator."""
    soft = SoftMaskEnforcer({"w": nn.Parameter(torch.ones(4))})
    soft.set_mask("w", torch.tensor([True, False, True, False]))
    soft.parameters["w"] = nn.Parameter(torch.ones(4, device="meta"))
    found = soft.kept("w"), soft.mask("w"), soft.dense("w")
    assert [tensor.device.type for tensor in found] == ["meta"] * 3


def test_gradients_with_a_graph_are_masked():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    [weight.grad] = torch.autograd.grad((weight**3).sum(), [weight], create_graph=True)
    enforcer = MaskEnforcer({"w": weight})
    enforcer.set_mask("w", torch.tensor([False, True]))
    enforcer.gradients()
    assert weight.grad.tolist() == [0, 12]


def test_masks_hold_after_weight_data_is_replaced():
    weight = nn.Parameter(torch.ones(4))
    enforcer = MaskEnforcer({"w": weight})
    enforcer.set_mask("w", torch.tensor([True, False, True, False]))
    enforcer.weights()
    for data in (
        torch.full((4,), 2.0),
        torch.full((4, 2), 3.0)[:, 0],
        torch.full((4,), 4.0).half(),
    ):
        weight.data = data
        enforcer.weights()
        assert weight.tolist() == [float(data[0]), 0, float(data[0]), 0]
    twin = copy.deepcopy(enforcer)
    nn.init.ones_(twin.parameters["w"])
    twin.weights()
    assert twin.parameters["w"].tolist() == [1, 0, 1, 0]


def test_full_mask_needs_no_working_mask():
    enforcer = MaskEnforcer({"w": nn.Parameter(torch.ones(3))})
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
    assert torch.equal(working, mask.to(torch.int16))


def test_optimizer_state_of_another_dtype_is_masked():
    """Mixed-precision optimizers keep float32 state beside half-precision weights."""
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = optim.SGD([weight], 0.1)
    optimizer.state[weight] = {"master": torch.full((2, 2), float("nan")), "step": torch.tensor(3)}
    enforcer = MaskEnforcer({"w": weight})
    enforcer.set_mask("w", torch.zeros(2, 2, dtype=torch.bool))
    enforcer.state([optimizer])
    assert not optimizer.state[weight]["master"].any()
    assert int(optimizer.state[weight]["step"]) == 3


def test_masks_that_do_not_fit_raise_with_the_name():
    model = network()
    optimizer = sgd(model)
    with pytest.raises(StateError, match=r"9.weight is masked but not selected here"):
        enforce(model, {"9.weight": torch.ones(2, dtype=torch.bool)}, optimizer)
    with pytest.raises(StateError, match=r"0.weight is \(8, 6\), its mask \(6, 8\)"):
        enforce(model, {"0.weight": torch.ones(6, 8, dtype=torch.bool)}, optimizer)
    with pytest.raises(ConfigError, match=r"0.weight must be a bool tensor"):
        enforce(model, {"0.weight": torch.ones(8, 6)}, optimizer)


def test_prune_then_enforce_keeps_zeros():
    model = network()
    optimizer = adamw(model)
    masks = regrow.prune(model, 0.75)
    with regrow.enforce(model, masks, optimizer):
        for _ in range(3):
            train_step(model, optimizer)
            assert_zero(model, optimizer, masks)
    assert sum(int((model.get_parameter(n) == 0).sum()) for n in masks) == 54


@pytest.mark.parametrize("last", [True, False])
def test_later_mask_replaces_the_first(last):
    """In the same memory while the weight stays as it is, in new memory once it does not."""
    weight = nn.Parameter(torch.ones(4, 3, 2, 2))
    if last:
        weight.data = weight.data.to(memory_format=torch.channels_last)
    enforcer = MaskEnforcer({"w": weight})
    masks = [torch.rand(4, 3, 2, 2) < 0.5 for _ in range(3)]
    enforcer.set_mask("w", masks[0])
    there = enforcer.kept("w").data_ptr()
    enforcer.set_mask("w", masks[1])
    assert enforcer.kept("w").data_ptr() == there
    assert torch.equal(enforcer.kept("w"), working_mask(masks[1], weight))
    weight.data = torch.ones(4, 3, 2, 2, dtype=torch.bfloat16)
    enforcer.set_mask("w", masks[2])
    enforcer.weights()
    assert torch.equal(weight != 0, masks[2])


@pytest.fixture
def one_rank():
    """A device mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_parameters_sharded_later_are_masked_in_their_local_rows(one_rank):
    """`reset` with parameters of another kind: their local tensors are what is masked."""
    dense = nn.Parameter(torch.ones(4, 3))
    enforcer = MaskEnforcer({"weight": dense})
    sharded = nn.Parameter(distribute_tensor(torch.ones(4, 3), one_rank, [Shard(0)]))
    enforcer.reset({"weight": sharded})
    mask = torch.arange(12).view(4, 3) % 3 != 0
    enforcer.set_mask("weight", mask)
    sharded.grad = distribute_tensor(torch.ones(4, 3), one_rank, [Shard(0)])
    enforcer.gradients()
    enforcer.weights()
    assert torch.equal(sharded.to_local(), mask.float())
    assert torch.equal(sharded.grad.to_local(), mask.float())


def sampled(enforcer, calls):
    """Whether one of so many checks, all of which are made, found a live weight."""
    return sum(enforcer.is_sample_live() for _ in range(calls)) > 0


@pytest.mark.parametrize("shape", [(70,), (5, 70), (4, 3, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_check_of_a_sample_reads_each_weight_in_turn(shape, dtype):
    """Within rows * width / 16 calls for each of two parameters, and no kept weight counts."""
    torch.manual_seed(0)
    weights = {name: nn.Parameter(torch.randn(shape).to(dtype)) for name in "ab"}
    masks = {name: torch.rand(shape) < 0.5 for name in weights}
    enforcer = MaskEnforcer(weights)
    for name, mask in masks.items():
        enforcer.set_mask(name, mask)
    enforcer.weights()
    calls = 2 * weights["a"].numel()
    assert not sampled(enforcer, calls)
    for place in (~masks["b"]).flatten().nonzero().flatten().tolist():
        weights["b"].data.view(-1)[place] = -0.0 if place % 2 else 1.0
        assert sampled(enforcer, calls)
        enforcer.weights()
    assert not sampled(enforcer, calls)


class OnDevice(nn.Parameter):
    """Says that it is on an accelerator."""

    is_cpu = property(lambda self: False)


def test_the_check_of_a_sample_looks_at_all_parameters_on_a_device():
    """Every 64th call looks, at the next parameter, though eight of them share a factor with 64."""
    weights = {name: OnDevice(torch.randn(2, 5)) for name in "abcdefgh"}
    enforcer = MaskEnforcer(weights)
    for name in weights:
        enforcer.set_mask(name, torch.arange(10).view(2, 5) % 2 == 0)
    enforcer.weights()
    for name in weights:
        weights[name].data.add_(1.0)
        assert any(enforcer.is_sample_live() for _ in range(64 * 8 * 2)), name
        enforcer.weights()


def test_the_check_of_a_sample_finds_a_dense_write_at_once():
    weight = nn.Parameter(torch.randn(300, 784))
    enforcer = MaskEnforcer({"w": weight})
    enforcer.set_mask("w", torch.rand(300, 784) > 0.9)
    enforcer.weights()
    assert not sampled(enforcer, 50)
    weight.data.add_(1.0)
    assert sampled(enforcer, 2)
    weight.data = weight.data.clone()  # another storage, and dense
    assert sampled(enforcer, 1)
