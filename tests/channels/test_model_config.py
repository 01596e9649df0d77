# SPDX-License-Identifier: MIT
"""The configuration of a cut network builds it, where fields can say its widths."""

import torch
from configured_model import Model, make
from torch import nn

from regrow.channels import prune
from regrow.channels.model_config import configured_models, cut_config


def test_configuration_builds_the_cut_network():
    model, x = make()
    plan = prune(model, x, 0.5, distribution="uniform", round_to=1)
    config = cut_config(model, plan)
    assert vars(config) == vars(model.config) | {"width": 16, "heads": 2, "inner": 24}
    built = Model(config).double()
    built.load_state_dict(model.state_dict())
    assert torch.equal(built(x), model(x))


def test_layers_that_differ_have_no_configuration():
    model, x = make()
    assert cut_config(model, prune(model, x, 0.5, include=["blocks.0.up"], round_to=1)) is None


def test_configured_models_are_found_inside_others():
    model, x = make()
    outer = nn.ModuleDict({"net": model})
    assert [*configured_models(outer)] == ["net"]
    assert [*configured_models(model)] == [""]
    whole = nn.Sequential(model, nn.Linear(4, 2)).double()
    plan = prune(whole, x, 0.5, distribution="uniform", round_to=1)
    assert cut_config(model, plan, "0").inner == 24
