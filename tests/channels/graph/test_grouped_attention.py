# SPDX-License-Identifier: MIT
"""Grouped-query attention with rotary positions: key-value heads leave with all their queries."""

import copy
from types import SimpleNamespace

import pytest
import torch
from cut_oracle import Net, assert_close, check, distinct, half, noise, outputs, zeroed
from torch import nn
from torch.nn import functional as F

from regrow.channels import ChannelCut, prune
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import groups_from_trace
from regrow.channels.graph.trace import trace

ROWS = torch.zeros(2, 5, 6, dtype=torch.float64)
HEADS, SHARED, SIZE, WIDTH = 8, 4, 6, 10


def turned(x):
    """Half of each head's positions change places with the other half, as in Llama."""
    one, two = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-two, one), -1)


def by_halves(x, angles):
    angles = torch.cat((angles, angles), -1)
    return x * angles.cos() + turned(x) * angles.sin()


def by_pairs(x, angles):
    """Even positions change places with odd ones, as in GPT-J."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def in_part(x, angles):
    """Only the first four of each head's six positions are turned, as in Phi."""
    return torch.cat((by_halves(x[..., :4], angles[:, :2]), x[..., 4:]), -1)


def in_whole(x, angles):
    """The part that is not turned is empty."""
    return torch.cat((by_halves(x[..., :SIZE], angles), x[..., SIZE:]), -1)


ROTARY = {"halves": by_halves, "pairs": by_pairs, "part": in_part, "whole": in_whole}


class Grouped(nn.Module):
    """Queries of eight heads on keys and values of four."""

    def __init__(self, rotary, way="one operation", normed=False, heads=HEADS, shared=SHARED):
        super().__init__()
        self.rotary, self.way, self.groups = ROTARY[rotary], way, heads // shared
        self.config = SimpleNamespace(heads=heads, width=WIDTH)
        self.shared, self.inner = shared, heads * SIZE
        self.enter, self.leave = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        if way == "packed":
            self.qkv = nn.Linear(WIDTH, (heads + 2 * shared) * SIZE)
        elif way == "packed by heads":
            self.qkv = nn.Linear(WIDTH, heads * 3 * SIZE)
        else:
            self.q = nn.Linear(WIDTH, heads * SIZE)
            self.k, self.v = (nn.Linear(WIDTH, shared * SIZE, bias=False) for _ in range(2))
        self.o = nn.Linear(heads * SIZE, WIDTH, bias=False)
        self.one, self.two = (nn.RMSNorm(SIZE) if normed else nn.Identity() for _ in range(2))
        frequencies = 10.0 ** -torch.arange(SIZE // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def projected(self, x):
        """Queries, keys and values `(n, heads, places, size)`."""
        if self.way == "packed by heads":
            return self.qkv(x).unflatten(-1, (-1, 3 * SIZE)).transpose(1, 2).chunk(3, -1)
        if self.way == "packed":  # sizes come from the configuration and from attributes
            packed, end = self.qkv(x), self.config.heads * SIZE
            stop = end + self.shared * SIZE
            pieces = packed[..., :end], packed[..., end:stop], packed[..., stop:]
        else:
            pieces = self.q(x), self.k(x), self.v(x)
        return [p.view(*x.shape[:2], -1, SIZE).transpose(1, 2) for p in pieces]

    def forward(self, x):
        x = self.enter(x)
        q, k, v = self.projected(x)
        angles = torch.arange(x.shape[1])[:, None] * self.frequencies
        q, k = self.rotary(self.one(q), angles), self.rotary(self.two(k), angles)
        if k.shape[1] != q.shape[1] and self.way != "flag":
            n, shared, places, size = k.shape
            k, v = (
                t[:, :, None].expand(n, shared, self.groups, places, size).flatten(1, 2)
                for t in (k, v)
            )
        if self.way == "products":
            y = (q @ k.transpose(2, 3) / SIZE**0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.way == "flag")
        return self.leave(x + self.o(y.transpose(1, 2).reshape(*x.shape[:2], -1)))


@pytest.mark.parametrize(
    ("rotary", "way"),
    [*((r, "one operation") for r in ROTARY), ("halves", "products"), ("pairs", "flag")],
)
def test_groups_of_heads_and_width_are_cut_apart(rotary, way):
    model = Grouped(rotary, way, normed=way == "products")
    _, cut = check(model, ROWS, {"enter": WIDTH, "q": SHARED})
    assert (cut.groups, cut.q.out_features, cut.k.out_features) == (2, 4 * SIZE, 2 * SIZE)
    assert cut.frequencies.shape == (SIZE // 2,)


@pytest.mark.parametrize("rotary", ROTARY)
def test_a_cut_is_the_network_built_by_hand(rotary):
    """A network of the small sizes gets the rows and columns of the kept heads."""
    model = distinct(Grouped(rotary))
    original, x = copy.deepcopy(model), noise(ROWS)
    plan = prune(model, x, 0.4, distribution="uniform", round_to=1, exclude=["enter"])
    assert plan.removed == {"q": 2}
    kept = [s for s in range(SHARED) if plan.kept["k.weight"][0].view(SHARED, SIZE)[s].all()]
    keys = torch.tensor([s * SIZE + i for s in kept for i in range(SIZE)])
    pair = 2 * SIZE  # two heads of queries for one of keys
    queries = torch.tensor([s * pair + i for s in kept for i in range(pair)])
    built = Grouped(rotary, heads=4, shared=2).double()
    state = original.state_dict()
    built.load_state_dict(
        {
            **state,
            "q.weight": state["q.weight"][queries],
            "q.bias": state["q.bias"][queries],
            "k.weight": state["k.weight"][keys],
            "v.weight": state["v.weight"][keys],
            "o.weight": state["o.weight"][:, queries],
        }
    )
    built.frequencies = original.frequencies
    assert_close(outputs(model, x), outputs(built, x))
    assert_close(outputs(model, x), outputs(zeroed(original, model), x))


def test_heads_packed_by_head_are_cut():
    _, cut = check(Grouped("halves", "packed by heads"), ROWS, {"enter": WIDTH, "qkv": HEADS})
    assert cut.qkv.out_features == 4 * 3 * SIZE


def test_sizes_in_a_configuration_are_set_for_the_module_alone():
    model = distinct(Grouped("halves", "packed"))
    shared = model.config
    plan = prune(model, noise(ROWS), 0.4, distribution="uniform", round_to=1, exclude=["enter"])
    assert plan.removed == {"qkv": 2}
    assert (model.config.heads, model.shared, model.groups) == (4, 2, 2)
    assert (shared.heads, shared.width, model.config.width) == (8, WIDTH, WIDTH)
    other = distinct(Grouped("halves", "packed"))
    ChannelCut.from_state(plan.state_dict()).apply(other)
    other.load_state_dict(model.state_dict())
    assert_close(outputs(other, noise(ROWS)), outputs(model, noise(ROWS)))
    plan.restore_shapes(other)
    assert (other.config.heads, other.shared) == (8, 4)
    plan.undo()
    assert model.config is shared


class Fixed(Grouped):
    """The numbers of heads are part of the code."""

    def forward(self, x, biases):
        q = self.q(x).view(len(x), -1, 8, SIZE)
        k, v = (f(x).view(len(x), -1, 4, SIZE).repeat_interleave(2, 2) for f in (self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v, biases).transpose(1, 2).flatten(2))


def test_heads_that_cannot_be_cut_do_not_hold_the_width_back():
    """Both groups have parts outside of the module that fails."""

    def run(m, x):
        return m.leave(m.attention(m.enter(x), m.biases))

    inner = Fixed("halves")
    layers = {"enter": nn.Linear(6, WIDTH), "leave": nn.Linear(WIDTH, 3)}
    model = Net(run, biases=torch.zeros(8, 5, 5), attention=inner, **layers)
    inner.enter = inner.leave = None
    check(model, ROWS, {"enter": WIDTH, "biases": SHARED, "attention.o": WIDTH}, refused={"biases"})


@pytest.mark.vision
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3", "Gemma", "Phi", "Phi3", "GPTNeoX"])
def test_language_models_of_transformers_lose_key_value_groups(name, eager):
    import transformers

    sizes = {
        "vocab_size": 40, "hidden_size": 96, "intermediate_size": 56, "num_hidden_layers": 1,
        "num_attention_heads": 8, "num_key_value_heads": 4, "pad_token_id": 0,
        "max_position_embeddings": 32, "use_cache": False,
    }  # fmt: skip
    if name in ("Gemma", "Qwen3"):
        sizes["head_dim"] = 12
    config = getattr(transformers, f"{name}Config")(**sizes)
    config._attn_implementation = "eager" if eager else "sdpa"
    model = distinct(getattr(transformers, f"{name}ForCausalLM")(config)).float()
    given = {
        "input_ids": torch.arange(3, 17).view(2, 7),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
    }
    traced = trace(model, given)
    found = groups_from_trace(traced, model)
    free = [group for group in found if not group.fixed_reason]
    heads = 8 if name == "GPTNeoX" else 4  # whose keys are not shared
    assert sorted(group.size for group in free if group.size < 96) == [heads, 56]
    original, removed = copy.deepcopy(model), half(g for g in free if g.size < 96)
    assert not TrialCut(model, traced, found, given).find_valid(removed).failed
    expected = outputs(zeroed(original, model), given)
    for one, other in zip(outputs(model, given), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    model.train()(**given).logits.sum().backward()
    plan = prune(original, given, 0.5, distribution="uniform", round_to=1)
    assert plan.removed == {group.name: group.size // 2 for group in free}
    original.train()(**given).logits.sum().backward()
