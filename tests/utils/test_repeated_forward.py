# SPDX-License-Identifier: MIT
"""`RepeatedForward`: each module runs once a batch, and gives what a whole pass gives."""

import copy
import random

import pytest
import torch
from torch import nn

from regrow.utils.errors import StateError
from regrow.utils.repeated_forward import MEMORY, RepeatedForward, digest_calls


def layers_of(model):
    return [module for module in model.modules() if type(module) is nn.Linear]


def first(args, kwargs):
    return args[0]


def inputs_of_each(model, batches, memory):
    """The inputs of each layer, in the order of `modules`, for each batch; the layers change."""
    found = []
    with torch.no_grad(), RepeatedForward(model, memory) as passes:
        for layer in layers_of(model):
            for index, batch in enumerate(batches):
                found += passes.run_to(layer, index, batch, first)
            layer.weight.mul_(0.5)
        passes.check(batches)
    return found


def mlp(inplace=False):
    def act():
        return nn.ReLU(inplace=inplace)

    return nn.Sequential(
        nn.Linear(6, 6), act(), nn.Sequential(nn.Linear(6, 6), act(), nn.Linear(6, 6)), act(),
        nn.Identity(), nn.Linear(6, 6),
    )  # fmt: skip


class Residual(nn.Module):
    """A block whose shortcut is overwritten by an activation in place."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.a, self.b, self.down = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        inner = self.act(self.a(self.act(x)))  # x is changed too
        out = self.b(inner)
        out += self.down(x)
        return self.act(out)


class Overwrites(nn.Module):
    """The first step of a Sequential changes its input, which the shortcut reads."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Sequential(
            nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)
        )
        self.last = nn.Linear(6, 6)

    def forward(self, x):
        y = self.steps(x)
        return self.last(x + y)


class Named(nn.Module):
    """Modules give dictionaries and tuples, and take arguments by name."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.last = nn.Linear(6, 6)

    def forward(self, x, scale):
        out = self.inner(scale=scale, x=x)
        return self.last(out["both"][0] + out["both"][1])


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, scale):
        return {"both": (self.a(x) * scale, self.b(x)), "name": "inner", "none": None}


MODELS = {
    "chain": mlp,
    "in place": lambda: mlp(inplace=True),
    "residual": lambda: nn.Sequential(Residual(), Residual(), nn.Linear(6, 2)),
    "attention": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2, enable_nested_tensor=False
    ),
    "overwritten shortcut": lambda: nn.Sequential(Overwrites(), nn.Linear(6, 6), Overwrites()),
    "one module at two places": lambda: nn.Sequential(
        act := nn.ReLU(), nn.Linear(6, 6), act, nn.Linear(6, 6), act, nn.Linear(6, 6)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("memory", [MEMORY, 2000])
def test_layers_get_the_inputs_of_whole_passes(name, memory):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    again, batches = copy.deepcopy(model), [torch.randn(4, 3, 6) for _ in range(3)]
    expected = inputs_of_each(again, batches, 0)
    found = inputs_of_each(model, batches, memory)
    assert len(found) == len(expected) >= 6
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_named_arguments_and_nested_outputs():
    torch.manual_seed(0)
    model, found = Named(), []
    batch = {"x": torch.randn(4, 6), "scale": 2.0}
    with torch.no_grad():
        out = model.inner(**batch)
        expected = out["both"][0] + out["both"][1]
        with RepeatedForward(model, MEMORY) as passes:
            for layer in (model.inner.a, model.inner.b, model.last, model.last):
                found = passes.run_to(layer, 0, batch, first)
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("nested", [False, True])
def test_each_module_runs_once_a_batch(nested):
    depth, runs = 8, []
    layers = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(depth)]
    model = nn.Sequential(*layers) if nested else nn.Sequential(*(m for s in layers for m in s))
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.register_forward_hook(lambda *_: runs.append(1))
    batches = [torch.randn(5, 6) for _ in range(4)]
    with torch.no_grad(), RepeatedForward(model, MEMORY) as passes:
        for layer in layers_of(model):
            for index, batch in enumerate(batches):
                passes.run_to(layer, index, batch, first)
    assert len(runs) == (depth - 1) * len(batches)


def test_no_more_than_the_memory_is_stored_and_later_outputs_replace_earlier_ones():
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(10))).eval()
    with torch.no_grad(), RepeatedForward(model, memory=2 * 4 * 6 * 4) as passes:
        for layer in model:
            for index in range(2):
                passes.run_to(layer, index, torch.ones(4, 6), first)
                held = [out.value for outs in passes._stored.values() for out in outs.values()]
                assert sum(x.numel() * 4 for x in held) <= 2 * 4 * 6 * 4
        assert len(held) == 2  # of both batches, the last outputs before the last layer


class Remembers(nn.Module):
    """A block keeps an activation on itself, which a later one reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.keep = nn.Identity()
        self.keep.register_forward_hook(self.remember)
        self.block = nn.Sequential(self.a, self.keep)

    def remember(self, module, args, output):
        self.kept = output

    def forward(self, x):
        return self.c(self.b(self.block(x)) + self.kept)


class Scattered(nn.Module):
    """A module changes a tensor that it was not given."""

    def __init__(self):
        super().__init__()
        self.a, self.inner, self.b = nn.Linear(6, 6), Scatters(), nn.Linear(6, 6)

    def forward(self, x):
        x = self.a(x)
        self.inner.target = [x]
        return self.b(self.inner(x.clone()) + x)


class Scatters(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, y):
        self.target[0].add_(1)
        return self.layer(y)


class Collects(nn.Module):
    """Blocks append to a list that they are given."""

    def __init__(self):
        super().__init__()
        self.block = Appends()
        self.last = nn.Linear(6, 6)

    def forward(self, x):
        seen = []
        return self.last(self.block(x, seen) + sum(seen))


class Appends(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, seen):
        seen.append(x)
        return self.layer(x)


class Tied(nn.Module):
    """The last layer has the weight of the first one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x)).tanh())


class Twice(nn.Module):
    """A layer is called once more for a longer batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.a(x)
        return self.b(self.a(x) if len(x) > 4 else x)


SIDE_EFFECTS = [Remembers, Scattered, Collects, Tied, Twice]


@pytest.mark.parametrize("make", SIDE_EFFECTS)
def test_a_model_that_depends_on_side_effects_is_found(make):
    torch.manual_seed(0)
    batches = [torch.randn(4, 6), torch.randn(4, 6), torch.randn(5, 6)]
    model = nn.Sequential(make(), nn.Linear(6, 6), nn.Linear(6, 6)).eval()
    with pytest.raises((StateError, RuntimeError, TypeError)):
        inputs_of_each(model, batches, MEMORY)
    assert inputs_of_each(model, batches, 0)


def test_other_arguments_at_another_call_of_the_wanted_layer_are_found():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with torch.no_grad(), RepeatedForward(model, MEMORY) as passes:
        passes.run_to(model[1], 0, torch.ones(2, 6), first)
        passes.run_to(model[1], 0, torch.ones(2, 6), first)
        passes.check([torch.ones(2, 6)])
        model[0].weight.mul_(2.0)
        with pytest.raises(StateError, match="differs"):
            passes.check([torch.ones(2, 6)])


def test_calls_are_counted():
    model = nn.Sequential(Twice(), nn.Linear(6, 6))
    layers = layers_of(model)
    x = torch.ones(5, 6)
    x[0, 0] = 2.0
    calls = digest_calls(model, layers, x)
    assert [len(calls[layer]) for layer in layers] == [2, 1, 1]
    assert calls[layers[0]][0] == ((5.0, 6.0, 31.0, 11.0, 33.0**0.5),)  # shape, sums, norm


def random_model(seed):
    """Blocks of layers with activations in place, shared or not, and shortcuts."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    shared = [nn.ReLU(inplace=True), nn.ReLU()]

    def act():
        return rng.choice(shared) if rng.random() < 0.5 else nn.ReLU(inplace=rng.random() < 0.5)

    class Block(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.act, self.kind = inner, act(), rng.randrange(6)

        def forward(self, x):
            if self.kind == 0:
                x += self.inner(x)
                return self.act(x)
            if self.kind == 1:
                y = self.inner(x)
                y += x
                return self.act(y)
            if self.kind == 2:
                return self.inner(self.act(x)) + x
            if self.kind == 3:
                return self.inner(x).view(-1, 6)
            return x + self.inner(x) if self.kind == 4 else self.act(x)

    def node(depth):
        if not depth or rng.random() < 0.3:
            return rng.choice([lambda: nn.Linear(6, 6), act])()
        if rng.random() < 0.6:
            return nn.Sequential(*(node(depth - 1) for _ in range(rng.randint(1, 4))))
        return Block(node(depth - 1))

    return nn.Sequential(*(node(3) for _ in range(3)), nn.Linear(6, 6)).eval()


@pytest.mark.parametrize("seed", range(60))
def test_random_models_give_the_inputs_of_whole_passes_or_say_that_they_differ(seed):
    model = random_model(seed)
    batches = [torch.randn(4, 6) for _ in range(2)]
    order, whole = [], copy.deepcopy(model)
    names = {module: name for name, module in model.named_modules()}
    for layer in layers_of(model):
        layer.register_forward_hook(lambda layer, *_: order.append(layer))
    model(batches[0].clone())
    layers = [layer for layer in dict.fromkeys(order) if order.count(layer) == 1]
    found, expected = [], []
    for memory, network, to in ((0, whole, expected), (MEMORY, model, found)):
        with torch.no_grad(), RepeatedForward(network, memory) as passes:
            for name in [names[layer] for layer in layers]:
                layer = network.get_submodule(name)
                for index, batch in enumerate(batches):
                    to += passes.run_to(layer, index, batch.clone(), first)
                layer.weight.mul_(0.5)
            try:
                passes.check([batch.clone() for batch in batches])
            except StateError:
                return
    assert len(found) == len(expected)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_calls_are_as_before_afterwards():
    model, calls = mlp(), []
    model[1].compile()
    compiled = model[1]._compiled_call_impl
    model[0].register_forward_hook(lambda *_: calls.append(1))
    stance = torch.compiler.set_stance("force_eager")
    with RepeatedForward(model, MEMORY) as passes, torch.no_grad(), stance:
        for _ in range(2):
            passes.run_to(model[5], 0, torch.ones(2, 6), first)
    assert calls == [1]
    assert model[1]._compiled_call_impl is compiled
    assert not [m for m in model.modules() if m._compiled_call_impl and m is not model[1]]
    assert [len(m._forward_hooks) for m in model] == [1, 0, 0, 0, 0, 0]


def test_a_copy_that_a_module_makes_of_itself_runs_with_its_own_weights():
    class Copies(nn.Linear):
        def forward(self, x):
            if self.training:
                return super().forward(x)
            twin = copy.deepcopy(self).train()
            twin.weight.zero_()
            return twin(x)

    model = nn.Sequential(Copies(6, 6, bias=False), nn.Linear(6, 6)).eval()
    with torch.no_grad(), RepeatedForward(model, MEMORY) as passes:
        for _ in range(2):
            (found,) = passes.run_to(model[1], 0, torch.ones(2, 6), first)
            assert not found.any()
