# SPDX-License-Identifier: MIT
"""Selection of parameters by patterns, and errors."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from regrow.masks.targets import select_targets
from regrow.pruning.config import PruningConfig
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.names import strip_compile_prefix


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3)
        self.depth = nn.Conv2d(width, width, 3, groups=width)
        self.norm = nn.BatchNorm2d(width)


class Net(nn.Module):
    """One of every kind."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.layer10 = Block(4)
        self.up = nn.ConvTranspose2d(4, 2, 3)
        self.emb = nn.Embedding(7, 6)
        self.own = nn.ParameterList([nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))])
        self.fc = nn.Linear(6, 5)


DEFAULT = [
    "stem.weight",
    "layer1.0.conv.weight",
    "layer1.0.depth.weight",
    "layer1.1.conv.weight",
    "layer1.1.depth.weight",
    "layer10.conv.weight",
    "layer10.depth.weight",
    "up.weight",
    "fc.weight",
]


def chosen(model, **patterns):
    return [target.name for target in select_targets(model, **patterns).targets]


def test_default_is_the_weights_of_convolutions_and_linear_layers():
    selection = select_targets(Net())
    assert [t.name for t in selection.targets] == DEFAULT
    assert "fc.bias" in selection.reasons
    assert "only when included by name" in selection.reasons["layer10.norm.weight"]
    assert "weight of Embedding" in selection.reasons["emb.weight"]
    names = {name for name, _ in Net().named_parameters()}
    assert names == set(selection.reasons) | set(DEFAULT), "every parameter is accounted for"


def test_input_dimension_of_each_layer():
    dims = {t.name: t.input_dim for t in select_targets(Net()).targets}
    assert dims.pop("up.weight") == 0
    assert set(dims.values()) == {1}
    named = select_targets(Net(), include=["fc.bias", "emb.weight"]).targets
    assert {t.name: t.input_dim for t in named} == {"emb.weight": 1, "fc.bias": None}


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["fc"], ["fc.weight"]),
        (["fc.weight"], ["fc.weight"]),
        (["layer1.*"], DEFAULT[1:5]),
        (["layer1"], DEFAULT[1:5]),
        (["1.conv"], ["layer1.1.conv.weight"]),
        (["conv"], [n for n in DEFAULT if ".conv." in n]),
        (["*.conv.weight"], [n for n in DEFAULT if ".conv." in n]),
        (["layer?.0.*"], DEFAULT[1:3]),
        (["@first"], ["stem.weight"]),
        (["@last"], ["fc.weight"]),
        (["@depthwise"], [n for n in DEFAULT if ".depth." in n]),
        (["*"], DEFAULT),
        (["fc.bias"], ["fc.bias"]),
        (["emb.weight"], ["emb.weight"]),
        (["own.0"], ["own.0"]),
        (["fc.*", "fc.bias"], ["fc.weight", "fc.bias"]),
        (["_orig_mod.fc"], ["fc.weight"]),
    ],
)
def test_patterns_select_parameters(patterns, names):
    assert chosen(Net(), include=patterns) == names


def test_bias_is_selected_only_by_its_full_last_part():
    assert chosen(Net(), include=["*.bias"])[0] == "stem.bias"
    with pytest.raises(
        ConfigError, match=r"matches only emb.weight \(weight of Embedding\).*write"
    ):
        select_targets(Net(), include=["emb"])


def test_exclude_removes_parameters_and_gives_the_reason():
    selection = select_targets(Net(), exclude=["@first", "@depthwise", "fc"])
    assert [t.name for t in selection.targets] == [
        "layer1.0.conv.weight",
        "layer1.1.conv.weight",
        "layer10.conv.weight",
        "up.weight",
    ]
    assert selection.reasons["stem.weight"] == "excluded by '@first'"
    assert selection.reasons["fc.weight"] == "excluded by 'fc'"
    included = select_targets(Net(), include=["layer1"], exclude=["*.depth"])
    assert len(included.targets) == 2
    assert included.reasons["fc.weight"] == "not included"


@pytest.mark.parametrize("what", ["include", "exclude"])
def test_a_pattern_without_a_match_lists_the_nearest_names(what):
    with pytest.raises(ConfigError, match=rf"{what} pattern 'layer2.\*' matches no.*layer1"):
        select_targets(Net(), **{what: ["layer2.*"]})
    with pytest.raises(ConfigError, match="'@lst' is unknown: there are @first, @last, @depthwise"):
        select_targets(Net(), **{what: ["@lst"]})
    with pytest.raises(ConfigError, match=r"matches no parameter: nearest are stem.weight"):
        select_targets(Net(), **{what: ["qqqqqqqqqqqq"]})


def test_depthwise_pattern_without_such_layers_raises():
    with pytest.raises(ConfigError, match="matches no parameter"):
        select_targets(nn.Linear(2, 2), exclude=["@depthwise"])


def test_selection_without_parameters_raises():
    with pytest.raises(ConfigError, match="nothing is left to prune"):
        select_targets(Net(), exclude=["*"])
    with pytest.raises(ConfigError, match="the model has 2 parameters"):
        select_targets(nn.LayerNorm(3))


def test_layer_targets_match_only_selected_parameters():
    selection = select_targets(Net(), exclude=["stem"])
    assert selection.match("layer1.*.conv", "layers") == [DEFAULT[1], DEFAULT[3]]
    with pytest.raises(ConfigError, match="layers pattern 'stem' matches no parameter"):
        selection.match("stem", "layers")


def test_tied_weights_are_one_target():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    [target] = select_targets(model).targets
    assert target.name == "0.weight"
    assert chosen(model, include=["2"]) == ["0.weight"]


def test_head_tied_to_an_embedding_is_pruned_only_if_named():
    model = nn.ModuleDict({"emb": nn.Embedding(9, 4), "fc": nn.Linear(4, 4)})
    model["head"] = nn.Linear(4, 9, bias=False)
    model["head"].weight = model["emb"].weight
    assert chosen(model) == ["fc.weight"]
    assert "Embedding and Linear" in select_targets(model).reasons["emb.weight"]
    assert chosen(model, include=["head.weight"]) == ["emb.weight"]


def test_frozen_weights_are_pruned_like_others():
    model = nn.Linear(3, 3)
    model.requires_grad_(False)
    assert chosen(model) == ["weight"]


def test_uninitialized_lazy_layers_raise_with_their_name():
    model = nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4))
    with pytest.raises(StateError, match=r"1.weight is not built yet \(a lazy layer\)"):
        select_targets(model)
    assert chosen(model, exclude=["1"]) == ["0.weight"]
    model(torch.ones(1, 2))
    assert chosen(model) == ["0.weight", "1.weight"]


def test_layers_under_torch_prune_raise_with_their_name():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    prune.l1_unstructured(model[1], "weight", 0.5)
    with pytest.raises(StateError, match=r"1.weight is masked by torch.nn.utils.prune.*remove"):
        select_targets(model)
    prune.remove(model[1], "weight")
    assert chosen(model) == ["0.weight", "1.weight"]


def test_parametrized_layers_are_left_out_with_a_reason():
    model = nn.Sequential(nn.Linear(2, 3), parametrizations.weight_norm(nn.Linear(3, 3)))
    selection = select_targets(model)
    assert [t.name for t in selection.targets] == ["0.weight"]
    assert "computed by a parametrization" in selection.reasons["1.weight"]
    named = chosen(model, include=["1.parametrizations.weight.original1"])
    assert named == ["1.parametrizations.weight.original1"]


def test_old_weight_norm_is_left_out_with_a_reason():
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(3, 3))
    selection = select_targets(nn.Sequential(nn.Linear(2, 3), layer))
    assert "computed by its module" in selection.reasons["1.weight"]


def test_complex_weights_raise():
    with pytest.raises(StateError, match=r"weight has dtype torch.complex64"):
        select_targets(nn.Linear(2, 2, dtype=torch.complex64))


def test_names_of_compiled_models_are_plain():
    plain = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3)))
    whole = torch.compile(plain, backend="eager")
    assert chosen(whole) == ["0.weight", "1.0.weight"]
    plain[0] = torch.compile(plain[0], backend="eager")
    plain[1][0] = torch.compile(plain[1][0], backend="eager")
    assert chosen(plain) == chosen(whole) == ["0.weight", "1.0.weight"]
    assert chosen(torch.compile(nn.Linear(2, 2), backend="eager")) == ["weight"]


def test_parametrized_layers_of_compiled_models_keep_their_plain_name():
    model = nn.Sequential(nn.Linear(2, 3), parametrizations.weight_norm(nn.Linear(3, 3)))
    assert "1.weight" in select_targets(torch.compile(model, backend="eager")).reasons


@pytest.mark.parametrize("name", ["fc.weight", "_orig_mod.fc.weight", "fc._orig_mod.weight"])
def test_compile_prefix_is_stripped(name):
    assert strip_compile_prefix(name) == "fc.weight"


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_parameters_without_elements_are_left_out():
    model = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 2))
    selection = select_targets(model, include=["*"])
    assert [target.name for target in selection.targets] == ["1.weight"]
    assert selection.reasons["0.weight"] == "it has no elements"
    with pytest.raises(ConfigError, match="nothing is left to prune"):
        select_targets(model[:1])
    for distribution in ("global", "uniform", "erk", "lamp"):
        pruner = Pruner(model, PruningConfig(distribution=distribution))
        pruner.prune_to(0.5)
        assert pruner.pruned == 3
        assert pruner.densities == {"1.weight": 0.5}


def test_wildcard_for_weights_does_not_select_norms():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    assert [t.name for t in select_targets(model, include=["*.weight"]).targets] == [
        "0.weight",
        "2.weight",
    ]
    assert [t.name for t in select_targets(model, include=["1.weight"]).targets] == ["1.weight"]
