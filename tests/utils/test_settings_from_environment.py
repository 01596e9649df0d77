# SPDX-License-Identifier: MIT
"""Empty lists of patterns, and numbers that come as text from the environment."""

import pytest
from omegaconf import OmegaConf
from torch import nn

import regrow
from regrow import (
    ChannelPruning,
    ConfigError,
    Cubic,
    Drop,
    DynamicSparseTraining,
    Exponential,
    LearnedMasks,
    MagnitudePruning,
    Masks,
    Plateau,
    PruneAtInit,
    Pruner,
)
from regrow.pruning.config import PruningConfig


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("empty", [[], (), OmegaConf.create([])])
@pytest.mark.parametrize(
    "make", [MagnitudePruning, DynamicSparseTraining, PruneAtInit, ChannelPruning, LearnedMasks]
)
def test_an_empty_list_excludes_nothing(make, empty):
    assert not make(exclude=empty).method.exclude
    assert make(exclude=empty).state_key == make().state_key


def test_functions_take_an_empty_list_and_a_single_pattern():
    assert regrow.prune(network(), 0.5, exclude=[]).total == 24
    assert len(Pruner(network(), PruningConfig(exclude=[])).targets) == 2
    assert regrow.sparsity(network(), include="0", exclude=[]) == 0
    assert [*Masks.from_zeros(network(), exclude="1")] == ["0.weight"]


def test_empty_include_list_raises():
    with pytest.raises(ConfigError, match="or None for all, got"):
        MagnitudePruning(include=[])
    with pytest.raises(ConfigError, match="or None for all, got"):
        regrow.sparsity(network(), include=[])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MagnitudePruning("0.9"), "sparsity is the text '0.9'"),
        (lambda: MagnitudePruning(layers={"fc": "0.5"}), "'fc' is the text '0.5'"),
        (lambda: MagnitudePruning(seed="3"), "seed is the text '3'"),
        (lambda: MagnitudePruning(begin="0.2"), "begin is the text '0.2'"),
        (lambda: MagnitudePruning(schedule=Cubic(every=" 0 ")), "every is the text ' 0 '"),
        (lambda: Exponential(rate="0.2", every="1ep"), "rate is the text '0.2'"),
        (lambda: Exponential(rounds="3", every="1ep"), "rounds is the text '3'"),
        (lambda: ChannelPruning("5e-1"), "sparsity is the text '5e-1'"),
        (lambda: ChannelPruning(min_channels="2"), "min_channels is the text '2'"),
        (lambda: DynamicSparseTraining(drop_fraction="0.3"), "drop_fraction is the text '0.3'"),
        (lambda: DynamicSparseTraining(seed="0"), "seed is the text '0'"),
        (lambda: LearnedMasks("str", score_lr="0.1"), "score_lr is the text '0.1'"),
        (lambda: LearnedMasks("str", ramp="0.5"), "ramp is the text '0.5'"),
        (lambda: PruneAtInit(batches="2"), "batches is the text '2'"),
        (lambda: Plateau("val", patience="2"), "patience is the text '2'"),
        (lambda: Drop("val", by="0.02"), "by is the text '0.02'"),
        (lambda: regrow.prune(network(), "0.5"), "sparsity is the text '0.5'"),
    ],
)
def test_numbers_as_text_raise_with_what_to_write(make, text):
    """Hydra's ${oc.env:NAME} is text; what the message advises makes a number of it."""
    with pytest.raises(ConfigError) as raised:
        make()
    assert text in str(raised.value)
    assert "${oc.decode:${oc.env:NAME}}" in str(raised.value)


def test_following_the_message_works(monkeypatch):
    monkeypatch.setenv("NAME", "0.8")
    cfg = OmegaConf.create({"sparsity": "${oc.decode:${oc.env:NAME}}"})
    assert MagnitudePruning(cfg.sparsity).final == 0.8


@pytest.mark.parametrize("given", ["high", "", "0.9%", "true"])
def test_other_text_raises(given):
    with pytest.raises(ConfigError, match="must be a number"):
        MagnitudePruning(given)
