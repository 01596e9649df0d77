# SPDX-License-Identifier: MIT
"""Every wrong setting raises its own error before the first training step."""

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from tiny_fits import SGD, Net, fit, loader, prune_at_start, trainer
from torch import nn, optim
from torch.nn.utils import prune

from regrow import (
    ConfigError,
    Cubic,
    Cyclic,
    Exponential,
    Linear,
    MagnitudePruning,
    OneShot,
    StateError,
    Table,
)

WORDS = {
    "90 for 0.9": ({"sparsity": 90}, r"must be in \[0, 1\), got 90: write 0\.9 for 90 %"),
    "one": ({"sparsity": 1}, r"must be in \[0, 1\), got 1"),
    "negative": ({"sparsity": -0.1}, r"must be in \[0, 1\)"),
    "a word for a number": ({"sparsity": "0.9"}, "is the text '0.9', not a number"),
    "nan": ({"sparsity": float("nan")}, r"must be in \[0, 1\)"),
    "yes for a number": ({"sparsity": True}, "must be a number"),
    "an unknown schedule": ({"schedule": "cubik"}, "did you mean 'cubic'"),
    "no schedule": ({"schedule": None}, "schedule must be a name"),
    "an unknown distribution": ({"distribution": "globl"}, "did you mean 'global'"),
    "an unknown criterion": ({"criterion": "magnitud"}, "did you mean 'magnitude'"),
    "no criterion": ({"criterion": 3}, "criterion must be a name"),
    "an unknown granularity": ({"granularity": "channel"}, "granularity"),
    "n:m that cannot be": ({"granularity": "4:2", "sparsity": 0.5}, "granularity"),
    "a sparsity that 2:4 has not": ({"granularity": "2:4"}, r"sparsity 0\.5 and no other"),
    "a bare number of steps": ({"begin": 500}, "write '500ep' or '500it'"),
    "a bare one": ({"every": 1}, "write '1ep', '1it' or 1.0"),
    "an unknown unit": ({"end": "3 epochs"}, "must be a time such as"),
    "no time at all": ({"every": 0}, "every must be above 0"),
    "begin after end": ({"begin": 0.8, "end": 0.2}, "lies after end"),
    "times beside an object": ({"schedule": Cubic(), "begin": 0.1}, "has its own times"),
    "times a name has not": ({"schedule": "one_shot", "end": 0.5}, "'one_shot' has no end"),
    "layers without sparsities": ({"layers": ["fc"]}, "layers must map"),
    "layers with percent": ({"layers": {"body.0": 50}}, r"body\.0.*must be in \[0, 1\)"),
    "patterns that are none": ({"include": [3]}, "include must be layer patterns"),
    "no patterns": ({"include": []}, "include must be layer patterns"),
    "a seed that is none": ({"seed": "zero"}, "seed must be a whole number"),
    "an unknown on_change": ({"on_change": "ignore"}, "on_change must be one of"),
    "soft": ({"soft": "yes"}, "soft must be True or False, got 'yes'"),
    "rewind": ({"rewind": 500}, "to=500 has no unit"),
    "a config group's name": ({"schedule": "pruning/gmp"}, "schedule must be one of"),
}


@pytest.mark.parametrize("mistake", WORDS)
def test_invalid_settings_raise_at_construction(mistake):
    settings, message = WORDS[mistake]
    with pytest.raises(ConfigError, match=message):
        MagnitudePruning(**settings)


def test_a_misspelt_keyword_raises():
    with pytest.raises(TypeError, match="sparcity"):
        MagnitudePruning(sparcity=0.9)


FIT = {
    "a pattern that matches nothing": ({"include": "boddy.0"}, r"matches no .*body\.0"),
    "an exclude that matches nothing": ({"exclude": ["body.1.wieght"]}, r"matches no .*body\.0"),
    "a layer that matches nothing": ({"layers": {"head": 0.5}}, "layers pattern 'head'"),
    "an unknown selector": ({"exclude": "@middle"}, "there are @first, @last, @depthwise"),
    "nothing left": ({"exclude": ["*"]}, "nothing is left to prune"),
    "every longer than the fit": (
        {"schedule": Linear(0, 0.75, "100it")}, r"every=100it.*longer than begin to end"
    ),
    "an end after the fit": ({"schedule": Linear(0, "16it", "1it")}, "ends before step 16"),
    "begin after the fit": ({"schedule": OneShot("3ep")}, "the event would never come"),
    "begin after end, in other units": (
        {"schedule": Linear("1ep", "3it", "1it")}, "lies after end"
    ),
    "a table that ends elsewhere": (
        {"sparsity": 0.9, "schedule": Table({"3it": 0.5})}, r"the table ends at sparsity 0\.5"
    ),
    "a table out of order": (
        {"sparsity": 0.9, "schedule": Table({"1ep": 0.5, "3it": 0.9})}, "must follow one another"
    ),
    "rounds that end elsewhere": (
        {"sparsity": 0.95, "schedule": Exponential(0.5, "2it", rounds=3)}, "end at sparsity 0.875"
    ),
    "too many rounds": (
        {"sparsity": 0.99, "schedule": Exponential(0.2, "1it")}, "the fit has room for 15"
    ),
    "n:m that does not divide": (
        {"granularity": "2:4", "sparsity": 0.5, "include": "body.0"}, r"body\.0\.weight"
    ),
    "blocks that do not divide": (
        {"granularity": "block:4x4", "include": "body.2"}, r"body\.2\.weight"
    ),
    "a target out of reach": ({"sparsity": 0.999, "schedule": OneShot("3it")}, "keeps at least"),
    "out of reach, uniform": (
        {"sparsity": 0.995, "distribution": "uniform", "schedule": OneShot("3it")}, "keeps at least"
    ),
    "a layer out of reach": (
        {"sparsity": 0.5, "layers": {"body.2": 0.99}, "schedule": OneShot("3it")}, "keeps at least"
    ),
    "out of reach in blocks": (
        {"sparsity": 0.95, "granularity": "block:16x3", "include": "body.0",
         "schedule": OneShot("3it")},
        "keeps at least",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", FIT)
def test_invalid_models_raise_before_the_first_step(mistake):
    settings, message = FIT[mistake]
    module = Net()
    with pytest.raises(ConfigError, match=message):
        fit(module, MagnitudePruning(**({"sparsity": 0.9} | settings)))
    assert module.trained == 0


def assert_fit_raises(module, match, error=StateError, **kw):
    with pytest.raises(error, match=match):
        fit(module, MagnitudePruning(0.5, schedule=OneShot("3it")), **kw)
    assert module.trained == 0


def test_unsupported_models_raise():
    module = Net()
    module.body[0] = nn.LazyLinear(16)
    assert_fit_raises(module, r"body\.0\.weight is not built yet")
    module = Net()
    prune.random_unstructured(module.body[0], "weight", 0.5)
    assert_fit_raises(module, r"body\.0\.weight is masked by torch\.nn\.utils\.prune")


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy])
def test_sharded_strategies_raise(kind):
    strategy = object.__new__(kind)
    from regrow.callbacks.core.checks import check_sharding_supported
    from regrow.pruning.pruner import Pruner

    class Fake:
        pass

    made = Fake()
    made.strategy = strategy
    with pytest.raises(ConfigError, match=rf"{kind.__name__} keeps .* write strategy='ddp'"):
        check_sharding_supported(made, Pruner(Net()))
    made.strategy = object.__new__(DDPStrategy)
    check_sharding_supported(made, Pruner(Net()))


def test_nan_weights_raise_with_the_layer_when_ranked():
    module = Net()
    with torch.no_grad():
        module.body[2].weight[0, 0] = float("nan")
    with pytest.raises(StateError, match=r"body\.2\.weight"):
        fit(module, MagnitudePruning(0.5, schedule=OneShot(0)))
    assert module.trained == 0


def test_layer_without_gradient_raises_with_its_name():
    module = Net(SGD)
    module.spare = nn.Linear(4, 4)
    pruning = MagnitudePruning(0.5, schedule=OneShot("1it"), criterion="taylor")
    with pytest.raises(StateError, match=r"gradient of spare\.weight"):
        fit(module, pruning)


def test_parameter_without_an_optimizer_is_pruned():
    """Frozen weights are ranked, masked and stay so."""
    module = Net(lambda parameters: optim.SGD([p for p in parameters if p.requires_grad], lr=0.1))
    module.body[0].requires_grad_(False)
    fit(module, MagnitudePruning(0.5, schedule=OneShot("1it")))
    assert int((module.body[0].weight == 0).sum() + (module.body[2].weight == 0).sum()) == 72


def test_cyclic_phases_that_do_not_fit_raise():
    with pytest.raises(ConfigError, match="is longer than begin to end"):
        trainer(MagnitudePruning(0.5, schedule=Cyclic("1ep", "2ep", "5ep")), max_epochs=6).fit(
            Net(), loader()
        )


def test_overlapping_layer_targets_raise():
    with pytest.raises(ConfigError, match=r"layers 'body\.2' never counts"):
        trainer(prune_at_start(0.5, layers={"*": 0.2, "body.2": 0.9})).fit(Net(), loader())


def test_criterion_that_modifies_weights_in_place_raises():
    module = Net()
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(StateError, match=r"changed body\.0\.weight in place"):
        trainer(prune_at_start(criterion=lambda w: w.abs_())).fit(module, loader())
    assert len(before) == 4
