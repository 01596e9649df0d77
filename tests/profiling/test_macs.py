# SPDX-License-Identifier: MIT
"""Positions and MACs against hand formulas and torch's own counter."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from regrow.profiling.macs import count_macs, positions
from regrow.utils.errors import ConfigError


def conv_output(size, kernel, stride, padding, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@pytest.mark.parametrize("shape", [(3, 10), (3, 7, 10), (3, 7, 5, 10)])
def test_linear_layers_are_counted_at_every_row(shape):
    rows = torch.zeros(shape)[0, ..., 0].numel()
    work = count_macs(nn.Linear(10, 4), torch.zeros(shape))
    assert work == (40 * rows, {"weight": rows})


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(3, 1, 0, 1), (3, 2, 1, 1), (5, 3, 2, 2)]
)
def test_convolutions_by_hand(groups, kernel, stride, padding, dilation):
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups)
    height, width = (conv_output(n, kernel, stride, padding, dilation) for n in (17, 12))
    work = count_macs(layer, torch.zeros(5, 4, 17, 12))
    assert work.positions == {"weight": height * width}
    assert work.macs == 8 * (4 // groups) * kernel**2 * height * width


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_are_counted_at_every_input_position(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=groups)
    work = count_macs(layer, torch.zeros(2, 4, 7, 5))
    assert work.positions == {"weight": 35}
    assert work.macs == 35 * 4 * (6 // groups) * 9


@pytest.mark.parametrize(
    ("layer", "shape", "used"),
    [
        (nn.Conv1d(3, 5, 3), (2, 3, 9), 7),
        (nn.Conv3d(3, 5, 2), (2, 3, 4, 5, 6), 60),
        (nn.ConvTranspose1d(3, 5, 3), (2, 3, 9), 9),
    ],
)
def test_convolutions_of_1d_and_3d_by_hand(layer, shape, used):
    assert positions(layer, torch.zeros(shape)) == {"weight": used}


class Residual(nn.Module):
    """ResNet-like: stem, a block with a strided shortcut, pooling, classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.short = nn.Conv2d(8, 16, 1, stride=2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.two(F.relu(self.one(x))) + self.short(x))
        return self.fc(x.mean((2, 3)))


def test_a_residual_network_by_hand():
    work = count_macs(Residual(), torch.zeros(4, 3, 32, 32))
    assert work.positions == {
        "stem.weight": 1024,
        "one.weight": 256,
        "two.weight": 256,
        "short.weight": 256,
        "fc.weight": 1,
    }
    assert work.macs == 1024 * 216 + 256 * (1152 + 2304 + 128) + 160


def test_total_equals_torchs_flop_counter():
    model, images = Residual().eval(), torch.zeros(4, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    assert count_macs(model, images).macs == counter.get_total_flops() / 2 / 4


def test_attention_includes_its_own_products():
    """Projections use weights without their modules' forward, and the scores use none."""
    width, length, batch = 8, 5, 3
    layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True)
    work = count_macs(layer, torch.zeros(batch, length, width))
    assert work.positions == {
        "self_attn.in_proj_weight": length,
        "self_attn.out_proj.weight": length,
        "linear1.weight": length,
        "linear2.weight": length,
    }
    weights = 4 * width * width + 2 * 16 * width
    assert work.macs == length * weights + 2 * length * length * width
    assert torch.backends.mha.get_fastpath_enabled()


def test_scaled_dot_product_attention_by_hand():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    work = count_macs(Attention(), torch.zeros(3, 2, 5, 8))
    assert work == (2 * 2 * 5 * 5 * 8, {})


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(self.a(x)))


def test_shared_layers_and_weights_count_as_often_as_they_are_used():
    assert count_macs(Twice(), torch.zeros(2, 6)) == (
        108,
        {"a.weight": 3, "b.weight": 3},
    )


def test_weights_in_plain_parameters_are_counted():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.ParameterList([torch.zeros(4, 6), torch.zeros(3)])

        def forward(self, x):
            return x @ self.own[0] + self.own[1].sum()

    assert count_macs(Plain(), torch.zeros(2, 5, 4)) == (120, {"own.0": 5})


def test_bias_is_not_counted():
    assert "bias" not in positions(nn.Linear(3, 3), torch.zeros(2, 3))
    assert "bias" not in positions(nn.Conv2d(3, 3, 1), torch.zeros(2, 3, 2, 2))


def test_examples_may_be_tuples_or_dicts_of_batches():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x, y):
            return self.fc(x) + y

    x, y = torch.zeros(3, 4), torch.zeros(3, 2)
    assert positions(Two(), (x, y)) == positions(Two(), {"x": x, "y": y}) == {"fc.weight": 1}
    for bad in (None, 3, torch.tensor(1.0), torch.zeros(0, 4)):
        with pytest.raises(ConfigError, match="must hold a batch of examples"):
            positions(Two(), bad)


def test_model_is_unchanged():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    model.train()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(2, 3, 4, 4)
    count_macs(model, images)
    assert [m.training for m in model] == [True, True, False, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_model_is_unchanged_when_forward_fails():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 4)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_macs(model, torch.zeros(2, 3))
    assert all(module.training for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_works_in_inference_mode():
    images = torch.zeros(4, 3, 32, 32)
    with torch.inference_mode():
        assert count_macs(Residual(), images) == count_macs(Residual(), images)
        assert count_macs(Residual(), images).positions["one.weight"] == 256


def test_counting_works_on_compiled_models():
    compiled = torch.compile(Residual(), backend="eager")
    images = torch.zeros(1, 3, 8, 8)
    assert count_macs(compiled, images) == count_macs(Residual(), images)
    nested = nn.Sequential(torch.compile(nn.Linear(3, 2), backend="eager"))
    assert positions(nested, torch.zeros(1, 3)) == {"0.weight": 1}


def test_counting_works_on_the_meta_device():
    with torch.device("meta"):
        model = Residual()
    assert count_macs(model, torch.zeros(2, 3, 32, 32)).positions["one.weight"] == 256


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_counting_works_in_every_precision_and_layout(dtype):
    model = Residual().to(dtype).to(memory_format=torch.channels_last)
    images = torch.zeros(2, 3, 32, 32, dtype=dtype)
    assert count_macs(model, images) == count_macs(Residual(), images.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_use_each_weight_once_a_step(kind, gates, mode, dtype):
    layer = getattr(nn, kind)(5, 8, 2, batch_first=True, bidirectional=True).to(dtype)
    with mode():
        work = count_macs(layer, torch.zeros(3, 7, 5, dtype=dtype))
    weights = [f"weight_{p}_l{n}{s}" for p in ("ih", "hh") for n in "01" for s in ("", "_reverse")]
    assert work.positions == dict.fromkeys(weights, 7.0)
    assert work.macs == 7 * 2 * gates * 8 * (5 + 8 + 16 + 8)


def test_projections_and_cells_are_counted():
    layer = nn.LSTM(5, 8, batch_first=True, proj_size=3)
    assert count_macs(layer, torch.zeros(2, 4, 5)).macs == 4 * (32 * 5 + 32 * 3 + 3 * 8)
    assert count_macs(nn.GRUCell(5, 8), torch.zeros(2, 5)).macs == 24 * 5 + 24 * 8


def test_bilinear_layers_use_each_weight_once_a_row():
    layer = nn.Bilinear(3, 4, 5)
    given = (torch.zeros(2, 6, 3), torch.zeros(2, 6, 4))
    assert count_macs(layer, given) == (6 * 60, {"weight": 6.0})


class Cast(nn.Module):
    """Casts inside its forward, by autocast or by hand."""

    def __init__(self, model, how):
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x):
        if self.how == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.model(x)
        weights = {name: p.to(torch.float64) for name, p in self.model.named_parameters()}
        return torch.func.functional_call(self.model, weights, x.double())


def projected_lstm():
    return nn.LSTM(8, 8, 2, batch_first=True, proj_size=3, bidirectional=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("how", ["autocast", "to"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), (4, 8)),
        (lambda: nn.Sequential(nn.Conv1d(8, 4, 3), nn.ConvTranspose1d(4, 2, 2)), (4, 8, 9)),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (4, 5, 8)),
        (lambda: nn.LSTM(8, 8, 2, batch_first=True), (4, 5, 8)),
        (projected_lstm, (4, 5, 8)),
        (lambda: nn.GRU(8, 8, batch_first=True), (4, 5, 8)),
        (Twice, (4, 6)),
    ],
)
def test_casts_of_weights_are_these_weights(make, shape, how, mode):
    model, x = make().eval(), torch.zeros(shape)
    plain = count_macs(model, x)
    with mode():
        cast = count_macs(Cast(model, how), x)
    assert cast == (plain.macs, {f"model.{name}": n for name, n in plain.positions.items()})


def test_counting_inside_autocast_leaves_its_cache_alone():
    """Copies that it keeps are unknown, and those of a pass without gradients are of no use."""
    model, x = nn.Linear(8, 3), torch.zeros(4, 8)
    for first in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if first:
                model(x)
            assert count_macs(model, x) == (24, {"weight": 1.0})
            assert torch.is_autocast_cache_enabled()
            assert model(x).requires_grad


def test_copies_of_a_part_of_a_weight_are_of_this_weight():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.wide = nn.Parameter(torch.zeros(6, 8)), nn.Linear(3, 2)

        def forward(self, x):
            one, other = self.both.t().contiguous().chunk(2, 1)
            return self.wide(x.half() @ one.half() + x.half() @ other.clone().half())

    model = Parts().half()
    assert count_macs(model, torch.zeros(4, 8)) == (54, {"both": 1.0, "wide.weight": 1.0})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("shape", [(4, 8), (4, 5, 8)])
def test_products_with_a_vector_are_those_with_a_matrix_of_one_column(shape, cast, mode):
    class Attend(nn.Module):
        def __init__(self, query):
            super().__init__()
            self.keys, self.query = nn.Linear(8, 16), nn.Parameter(query)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
                return self.keys(x) @ self.query

    rows = 1 if len(shape) == 2 else 5
    for query in (torch.zeros(16), torch.zeros(16, 1)):
        with mode():
            work = count_macs(Attend(query), torch.zeros(shape))
        assert work == (rows * (8 * 16 + 16), {"keys.weight": rows, "query": rows})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_products_of_vectors_by_hand(mode):
    class Vectors(nn.Module):
        def __init__(self, product):
            super().__init__()
            self.weight, self.product = nn.Parameter(torch.zeros(8)), product

        def forward(self, x):
            return self.product(x, self.weight)

    with mode():
        for product in (torch.dot, torch.vdot, torch.matmul):
            work = count_macs(Vectors(lambda x, w, f=product: f(x[0], w)), torch.zeros(1, 8))
            assert work == (8, {"weight": 1})
        work = count_macs(Vectors(lambda x, w: torch.addmv(x[:, 0], x, w)), torch.zeros(4, 8))
        assert work == (8, {"weight": 1})
