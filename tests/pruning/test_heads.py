# SPDX-License-Identifier: MIT
"""Whole attention heads, against attention written out in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow import ConfigError, MagnitudePruning, Pruner
from regrow.masks.granularity import Head
from regrow.masks.targets import select_targets
from regrow.pruning.config import PruningConfig

HEADS, SIZE, BATCH, LENGTH = 4, 3, 2, 5
WIDTH = HEADS * SIZE


def random_weights(module):
    """float64, no parameter zero, biases too."""
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


class Timm(nn.Module):
    """The attention of timm's vision transformers: q, k and v in one layer."""

    __module__ = "timm.layers.attention"

    def __init__(self):
        super().__init__()
        self.num_heads = HEADS
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*qkv)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))


class Separate(nn.Module):
    """Attention with four linear layers, as many write it."""

    def __init__(self, names=("q_proj", "k_proj", "v_proj", "out_proj"), heads="num_heads"):
        super().__init__()
        setattr(self, heads, HEADS)
        self.names = names
        for name in names:
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def mix(self, x):
        def split(name):
            return getattr(self, name)(x).view(*x.shape[:2], HEADS, SIZE).transpose(1, 2)

        mixed = nn.functional.scaled_dot_product_attention(*map(split, self.names[:3]))
        return mixed.transpose(1, 2).reshape(x.shape)

    def forward(self, x):
        return getattr(self, self.names[3])(self.mix(x))


class Bert(nn.Module):
    """The attention of transformers' BERT: the output layer is in the module beside."""

    def __init__(self):
        super().__init__()
        self.self = Separate(("query", "key", "value"), "num_attention_heads")
        self.output = nn.Module()
        self.output.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.output.dense(self.self.mix(x))


class Torch(nn.Module):
    def __init__(self, **kw):
        super().__init__()
        self.att = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **kw)

    def forward(self, x, *others):
        return self.att(x, *(others or (x, x)), need_weights=False)[0]


def matrices(net):
    """q, k, v and o of any of the networks: ((weight, bias), ...) as arrays."""

    def numbers(tensor):
        return None if tensor is None else tensor.detach().numpy().copy()

    if isinstance(net, Torch):
        att = net.att
        weights = (
            (att.q_proj_weight, att.k_proj_weight, att.v_proj_weight)
            if att.in_proj_weight is None
            else att.in_proj_weight.chunk(3)
        )
        biases = [None] * 3 if att.in_proj_bias is None else att.in_proj_bias.chunk(3)
        pairs = [*zip(weights, biases, strict=True), (att.out_proj.weight, att.out_proj.bias)]
    elif isinstance(net, Timm):
        pairs = [*zip(net.qkv.weight.chunk(3), net.qkv.bias.chunk(3), strict=True)]
        pairs.append((net.proj.weight, net.proj.bias))
    else:
        layers = [getattr(net, name) for name in getattr(net, "names", ())]
        if isinstance(net, Bert):
            layers = [net.self.query, net.self.key, net.self.value, net.output.dense]
        pairs = [(layer.weight, layer.bias) for layer in layers]
    return [tuple(map(numbers, pair)) for pair in pairs]


def attention(parts, inputs, kept):
    """Attention in NumPy, without the heads that are not kept."""
    q, k, v = (
        x @ weight.T + (0 if bias is None else bias)
        for x, (weight, bias) in zip(inputs, parts[:3], strict=True)
    )
    weight, bias = parts[3]
    result = np.zeros((*q.shape[:2], len(weight))) + (0 if bias is None else bias)
    for head in kept:
        part = slice(head * SIZE, (head + 1) * SIZE)
        scores = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(SIZE)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        result += share @ v[..., part] @ weight[:, part].T
    return result


def head_magnitudes(parts):
    sums = np.zeros(HEADS)
    for head in range(HEADS):
        part = slice(head * SIZE, (head + 1) * SIZE)
        sums[head] = sum(np.abs(weight[part]).sum() for weight, _ in parts[:3])
        sums[head] += np.abs(parts[3][0][:, part]).sum()
    return sums


NETWORKS = {
    "torch": Torch,
    "torch without biases": lambda: Torch(bias=False),
    "timm": Timm,
    "separate": Separate,
    "separate by other names": lambda: Separate(("to_q", "to_k", "to_v", "to_out")),
    "bert": Bert,
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("pruned", [1, 2, 3])
def test_the_masked_model_is_attention_without_the_weakest_heads(make, pruned):
    net = random_weights(make())
    parts, x = matrices(net), torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    masks = regrow.prune(net, pruned / HEADS, granularity="head")
    kept = np.argsort(head_magnitudes(parts))[pruned:]
    expected = attention(parts, [x.numpy()] * 3, kept)
    assert np.abs(net(x).detach().numpy() - expected).max() < 1e-12
    assert masks.sparsity == pruned / HEADS
    whole = attention(parts, [x.numpy()] * 3, range(HEADS))
    assert np.abs(whole - expected).max() > 1e-3, "the heads did something"


def test_keys_and_values_of_other_sizes():
    net = random_weights(Torch(kdim=7, vdim=2))
    parts = matrices(net)
    inputs = [torch.randn(BATCH, LENGTH, size, dtype=torch.float64) for size in (WIDTH, 7, 2)]
    regrow.prune(net, 0.5, granularity="head")
    kept = np.argsort(head_magnitudes(parts))[2:]
    expected = attention(parts, [x.numpy() for x in inputs], kept)
    assert np.abs(net(*inputs).detach().numpy() - expected).max() < 1e-12


def test_rows_of_q_k_v_and_columns_of_o_are_zero_together():
    net = random_weights(Torch())
    parts = matrices(net)
    [head, *_] = np.argsort(head_magnitudes(parts))
    masks = regrow.prune(net, 0.25, granularity="head")
    rows = np.zeros((3, HEADS, SIZE, WIDTH), bool)
    rows[:, head] = True
    assert np.array_equal(~masks["att.in_proj_weight"].numpy(), rows.reshape(3 * WIDTH, WIDTH))
    columns = np.zeros((WIDTH, HEADS, SIZE), bool)
    columns[:, head] = True
    assert np.array_equal(~masks["att.out_proj.weight"].numpy(), columns.reshape(WIDTH, WIDTH))


class Two(nn.Module):
    """Two attention modules, the heads of the first weaker, and layers without heads."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Torch(), Separate()
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.mlp(self.second(self.first(x)))


def two():
    net = random_weights(Two())
    with torch.no_grad():
        net.first.att.in_proj_weight.mul_(0.1)
        net.first.att.out_proj.weight.mul_(0.1)
    return net


def kept_heads(pruner):
    columns = [
        pruner.masks[name].view(WIDTH, HEADS, SIZE).any(2).any(0).sum()
        for name in ("first.att.out_proj.weight", "second.out_proj.weight")
    ]
    return [int(count) for count in columns]


def pruner_of(net, **settings):
    return Pruner(net, PruningConfig(granularity="head", exclude=["mlp"], **settings))


def test_heads_of_all_layers_are_ranked_together_and_each_layer_keeps_one():
    pruner = pruner_of(two())
    pruner.prune_to(0.25)
    assert kept_heads(pruner) == [2, 4]
    pruner.prune_to(0.5)
    assert kept_heads(pruner) == [1, 3]
    assert pruner.sparsity == 0.5


def test_uniform_distribution_and_min_density():
    pruner = pruner_of(two(), distribution="uniform")
    pruner.prune_to(0.5)
    assert kept_heads(pruner) == [2, 2]
    pruner = pruner_of(two(), min_density=0.5)
    pruner.prune_to(0.25)
    assert kept_heads(pruner) == [2, 4]
    pruner.prune_to(0.5)
    assert kept_heads(pruner) == [2, 2]


def test_heads_are_restored_and_zero_heads_are_masked():
    net = two()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    config = PruningConfig(granularity="head", exclude=["mlp"])
    pruner = Pruner(net, config, keep_removed=True)
    pruner.prune_to(0.5)
    again = Pruner(net, config, from_zeros=True)
    assert again.masks.digest() == pruner.masks.digest()
    pruner.unprune()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_other_criteria_sum_over_a_head():
    net = random_weights(Torch())
    for parameter in net.parameters():
        parameter.grad = torch.rand_like(parameter)
    parts = [
        [np.abs(weight), None]
        for weight in net.att.in_proj_weight.grad.numpy().reshape(3, WIDTH, -1)
    ]
    parts.append([net.att.out_proj.weight.grad.numpy(), None])
    masks = regrow.prune(net, 0.5, granularity="head", criterion="gradient")
    kept = masks["att.out_proj.weight"].view(WIDTH, HEADS, SIZE).all(2).all(0).nonzero().flatten()
    assert kept.tolist() == sorted(np.argsort(head_magnitudes(parts))[2:])


def test_layers_without_heads_raise_or_stay_dense():
    with pytest.raises(ConfigError, match=r"mlp\.weight.*on_misfit='skip'"):
        Pruner(two(), PruningConfig(granularity="head"))
    with pytest.warns(UserWarning, match=r"1 layers stay dense: mlp\.weight"):
        pruner = Pruner(two(), PruningConfig(granularity="head", on_misfit="skip"))
    assert "mlp.weight" not in pruner.masks


class Grouped(Separate):
    def __init__(self):
        super().__init__()
        self.num_key_value_heads = 2


class Packed(Timm):
    """q, k and v in one layer, in an order that nobody knows."""

    __module__ = "mine"


class Talking(Timm):
    """A linear layer mixes the heads' attention."""

    __module__ = "timm.models.cait"

    def __init__(self):
        super().__init__()
        self.proj_l = nn.Linear(HEADS, HEADS)


class Normed(Separate):
    """Queries are normalised over all heads."""

    def __init__(self):
        super().__init__()
        self.q_norm = nn.LayerNorm(WIDTH)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Grouped, "2 heads of keys and values are shared"),
        (Packed, "order of q, k and v"),
        (Talking, "mixes them"),
        (Normed, "mixes them"),
        (lambda: Separate(("a", "b", "c", "d")), "no head"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), "no head"),
    ],
)
def test_unrecognised_attention_raises(make, words):
    with pytest.raises(ConfigError, match=words):
        regrow.prune(make(), 0.5, granularity="head")


def test_excluding_some_projections_raises():
    with pytest.raises(ConfigError, match=r"att\.out_proj\.weight.*include"):
        regrow.prune(Torch(), 0.5, granularity="head", exclude=["out_proj"])


def test_heads_of_different_sizes_raise():
    net = nn.Sequential(Torch(), nn.MultiheadAttention(WIDTH, 2))
    with pytest.raises(ConfigError, match="different numbers of weights"):
        regrow.prune(net, 0.5, granularity="head")


def test_sharded_heads_raise():
    [first, *_] = select_targets(Torch()).targets
    with pytest.raises(ConfigError, match="'ddp'"):
        Head().check_rows(first, None)


def test_separate_targets_of_layers_raise_with_heads():
    with pytest.raises(ConfigError, match="layers"):
        regrow.prune(Torch(), 0.5, granularity="head", layers={"out_proj": 0.25})


def test_heads_of_a_transformer_encoder_are_pruned():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    masks = regrow.prune(net, 0.5, granularity="head", on_misfit="skip", include=["self_attn"])
    assert masks.sparsity == 0.5
    assert len(masks) == 4


def test_the_callback_accepts_heads():
    assert MagnitudePruning(0.5, granularity="head").config.granularity == "head"
    with pytest.raises(ConfigError, match="'head'"):
        MagnitudePruning(0.5, granularity="heads")
