# SPDX-License-Identifier: MIT
"""A cut is tried: groups that fail are not cut and have a reason, the others are cut."""

import pytest
import torch
from cut_oracle import Net, distinct
from torch import nn

from regrow.channels import prune
from regrow.utils.errors import ConfigError

IMAGE = torch.zeros(2, 3, 8, 8, dtype=torch.float64)


def net(run):
    own = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "c": nn.Conv2d(8, 2, 1)}
    return distinct(Net(run, **own, d=nn.Conv2d(8, 2, 1)))


def half_fixed(m, x):
    """The width of `a` is written in the code, that of `b` is not."""
    return m.c(m.a(x).view(len(x), 8, 8, 8)) + m.d(m.b(x))


def test_groups_that_fail_are_kept_and_other_groups_make_up_for_them():
    model = net(half_fixed)
    plan = prune(model, IMAGE, 0.5)
    assert plan.removed == {"b": 4}
    assert "shape" in plan.not_prunable["a"]
    assert model.a.out_channels == 8


def test_model_with_a_fixed_batch_size_is_cut():
    """Other batch sizes fail before the cut, so they are not required after it."""
    model = net(lambda m, x: m.c(m.a(x).relu()).view(2, 2, 8, 8) + m.d(m.b(x)))
    assert prune(model, IMAGE, 0.5).removed


@pytest.mark.parametrize("training", [False, True])
def test_trial_runs_leave_statistics_modes_and_random_state_unchanged(training):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 2, 1)
    )  # fmt: skip
    model = distinct(model).train(training)
    mean = model[1].running_mean.clone()
    state = torch.get_rng_state()
    plan = prune(model, IMAGE, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training is training for module in model.modules())
    assert torch.equal(model[1].running_mean, mean[plan.kept["1.running_mean"][0]])
    assert model[1].num_batches_tracked == 0


class Scaled(nn.Module):
    """Divides by the square root of its width, which a cut must not change."""

    def __init__(self, outputs=lambda x, logits: logits, scale=True):
        super().__init__()
        self.a, self.b = nn.Linear(8, 64), nn.Linear(64, 4)
        self.outputs, self.scale = outputs, scale

    def forward(self, x):
        hidden = self.a(x).relu()
        scaled = hidden * hidden.shape[-1] ** -0.5 if self.scale else hidden
        return self.outputs(x, self.b(scaled))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_width_in_the_code_is_noticed_in_each_precision(dtype):
    model, x = distinct(Scaled()).to(dtype), torch.zeros(2, 8, dtype=dtype)
    with pytest.raises(ConfigError, match="its outputs would change"):
        prune(model, x, 0.75)
    assert prune(distinct(Scaled(scale=False)).to(dtype), x, 0.75).removed == {"a": 48}


def complex_pairs(x, logits):
    return torch.view_as_complex(logits.unflatten(-1, (2, 2)).contiguous())


OUTPUTS = {
    "classes": lambda x, logits: logits.argmax(-1),
    "complex": complex_pairs,
    "scores beside pixels": lambda x, logits: torch.cat([logits, 1e5 * x], -1),
    "zeros": lambda x, logits: logits * 0,
}


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_a_width_in_the_code_is_noticed_whatever_the_outputs(outputs):
    x = torch.zeros(2, 8)
    with pytest.raises(ConfigError, match="its outputs would change"):
        prune(distinct(Scaled(OUTPUTS[outputs])).float(), x, 0.75)
    model = distinct(Scaled(OUTPUTS[outputs], scale=False)).float()
    assert prune(model, x, 0.75).removed == {"a": 48}


class Reads(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.read, self.e = read, nn.Embedding(10, 8)
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.b(self.a(self.read(self, x)).relu())


def test_values_of_the_example_are_used_where_the_model_fails_on_noise():
    """Logarithms of positive numbers; numbers of an embedding that come as floats."""
    for read, x in (
        (lambda m, x: x.log(), torch.rand(4, 8) + 0.1),
        (lambda m, x: m.e(x.long()).mean(1), torch.randint(0, 10, (4, 5)).float()),
    ):
        model = Reads(read)
        assert prune(model, x, 0.5, include=["a"]).removed["a"] == 16
        assert model(x).isfinite().all()


def test_an_example_that_the_model_does_not_take_is_refused():
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 4))
    with pytest.raises(ConfigError, match=r"does not run on the example.*dtype"):
        prune(model, torch.zeros(2, 8, dtype=torch.int64), 0.5)


def test_outputs_that_are_infinite_by_design_are_compared_elsewhere():
    def forbidden(x, logits):
        return logits.masked_fill(torch.tensor([False, True, False, False]), -torch.inf)

    assert prune(distinct(Scaled(forbidden, scale=False)).float(), torch.zeros(2, 8), 0.5).removed
    with pytest.raises(ConfigError, match="its outputs would change"):
        prune(distinct(Scaled(forbidden)).float(), torch.zeros(2, 8), 0.5)
