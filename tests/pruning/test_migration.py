# SPDX-License-Identifier: MIT
"""Arguments and names of other pruning tools are answered with the line to write."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import regrow
from regrow import ChannelPruning, ConfigError, DynamicSparseTraining, Exponential, MagnitudePruning


def advice(call):
    """The line that an error says to write."""
    with pytest.raises(ConfigError) as raised:
        call()
    message = str(raised.value)
    return message.partition("write ")[2].partition(" (")[0], message


# What is written for Lightning's ModelPruning, and what is to be written here.
LINES = [
    ({"amount": 0.5}, "MagnitudePruning(0.5)"),
    ({"amount": 0.5, "verbose": 1}, "MagnitudePruning(0.5)"),
    (
        {"pruning_fn": "l1_unstructured", "amount": 0.5, "use_global_unstructured": True},
        "MagnitudePruning(0.5, criterion='magnitude', distribution='global')",
    ),
    (
        {"pruning_fn": "random_unstructured", "amount": 0.3, "use_global_unstructured": False},
        "MagnitudePruning(0.3, criterion='random', distribution='uniform')",
    ),
    ({"pruning_fn": torch_prune.L1Unstructured}, "MagnitudePruning(0.9, criterion='magnitude')"),
    (
        {"parameters_to_prune": [(nn.Linear(2, 2), "weight")], "amount": 0.5},
        "MagnitudePruning(0.5, include=['LAYER.weight'])",
    ),
    ({"amount": 0.5, "use_lottery_ticket_hypothesis": True}, "MagnitudePruning(0.5, rewind=0)"),
    (
        {"pruning_fn": "ln_structured", "amount": 0.5, "pruning_dim": 0, "pruning_norm": 1},
        "ChannelPruning(0.5, criterion='l1')",
    ),
    ({"pruning_fn": "random_structured", "amount": 0.5}, "ChannelPruning(0.5, criterion='random')"),
    ({"amount": lambda epoch: 0.5}, "MagnitudePruning(0.9)"),
    ({"amount": 100}, "MagnitudePruning(0.9)"),
    ({"amount": 0.5, "exclude": "@last"}, "MagnitudePruning(0.5, exclude='@last')"),
]


@pytest.mark.parametrize(("given", "line"), LINES)
def test_arguments_of_model_pruning_raise_with_the_line_to_write(given, line):
    written, message = advice(lambda: MagnitudePruning(**given))
    assert written == line
    assert all(name in message for name in given if name != "exclude")
    eval(line, vars(regrow) | {"ChannelPruning": ChannelPruning})  # it is a valid line


def test_repeated_pruning_of_model_pruning_raises_with_the_schedule_to_write():
    """Half of what remains after each of three epochs is 0.875."""
    _, message = advice(lambda: MagnitudePruning(amount=0.5))
    assert "what remains" in message
    assert "Exponential(0.5, every='1ep', rounds=3)" in message
    assert MagnitudePruning(schedule=Exponential(0.5, every="1ep", rounds=3)).final == 0.875


def test_name_of_a_pruning_function_raises_with_the_line_to_write():
    written, _ = advice(lambda: MagnitudePruning("random_unstructured", amount=0.5))
    assert written == "MagnitudePruning(0.5, criterion='random')"
    net = nn.Linear(4, 4)
    written, _ = advice(lambda: regrow.prune(net, "l1_unstructured", amount=0.5))
    assert written == "prune(model, 0.5, criterion='magnitude')"
    assert bool((net.weight != 0).all())


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: ChannelPruning(amount=0.5), "ChannelPruning(0.5)"),
        (lambda: ChannelPruning(pruning_ratio=0.5), "ChannelPruning(0.5)"),
        (lambda: DynamicSparseTraining(amount=0.5), "DynamicSparseTraining(0.5)"),
        (lambda: regrow.LearnedMasks(amount=0.5), "LearnedMasks(sparsity=0.5)"),
        (lambda: regrow.PruneAtInit(amount=0.5), "PruneAtInit(0.5)"),
        (lambda: MagnitudePruning(final_sparsity=0.5), "MagnitudePruning(0.5)"),
        (lambda: regrow.prune(nn.Linear(4, 4), amount=0.5), "prune(model, 0.5)"),
    ],
)
def test_every_pruning_class_raises_with_the_line_to_write(call, line):
    assert advice(call)[0] == line


def test_other_unknown_arguments_raise_type_error_and_signatures_are_unchanged():
    with pytest.raises(TypeError, match="sparsty"):
        MagnitudePruning(sparsty=0.5)
    parameters = inspect.signature(MagnitudePruning).parameters
    assert "criterion" in parameters
    assert not {"args", "kwargs"} & {*parameters}


# Names that other tools use, and ours.
NAMES = [
    ("schedule", MagnitudePruning, {"polynomial": "cubic", "polynomial_decay": "cubic",
        "PolynomialDecay": "cubic", "agp": "cubic", "constant": "one_shot", "oneshot": "one_shot",
        "one-shot": "one_shot", "iterative": "exponential", "geometric": "exponential",
        "lottery_ticket": "exponential"}),
    ("criterion", MagnitudePruning, {"l1": "magnitude", "L1": "magnitude", "l2": "magnitude",
        "l1_unstructured": "magnitude", "weight": "magnitude", "random_unstructured": "random",
        "grad": "gradient", "saliency": "taylor"}),
    ("distribution", MagnitudePruning, {"layerwise": "uniform", "local": "uniform",
        "global_unstructured": "global", "erdos_renyi": "erk", "er": "erk"}),
    ("criterion", ChannelPruning, {"l1_norm": "l1", "magnitude": "l2", "ln_structured": "l2"}),
    ("of", ChannelPruning, {"flops": "macs", "parameters": "params", "filters": "channels"}),
    ("grow", DynamicSparseTraining, {"rigl": "gradient", "set": "random", "snfs": "momentum"}),
    ("drop", DynamicSparseTraining, {"l1": "magnitude"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "method", "theirs", "ours"),
    [(what, method, k, v) for what, method, names in NAMES for k, v in names.items()],
)
def test_names_from_other_tools_raise_with_the_name_to_write(what, method, theirs, ours):
    with pytest.raises(ConfigError) as raised:
        method(0.5, **{what: theirs})
    assert f"write {ours!r}" in str(raised.value)
    method(0.5, **{what: ours})


@pytest.mark.parametrize("theirs", ["unstructured", "element", "l1_unstructured"])
def test_names_for_single_weights_raise_with_granularity_weight(theirs):
    with pytest.raises(ConfigError, match="write 'weight'"):
        MagnitudePruning(0.5, granularity=theirs)


@pytest.mark.parametrize("theirs", ["channel", "structured", "filter", "ln_structured"])
@pytest.mark.parametrize("what", ["granularity", "criterion"])
def test_structured_names_raise_with_channel_pruning(what, theirs):
    with pytest.raises(ConfigError, match="ChannelPruning"):
        MagnitudePruning(0.5, **{what: theirs})


def test_misspelt_names_raise_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'cubic'"):
        MagnitudePruning(0.5, schedule="cubik")
    assert torch.is_tensor(regrow.prune(nn.Linear(4, 4), 0.5)["weight"])
