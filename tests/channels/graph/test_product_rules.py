# SPDX-License-Identifier: MIT
"""Products of tensors: whole heads are cut, however they are multiplied."""

import pytest
import torch
from cut_oracle import Net, check
from torch import nn
from torch.nn import functional as F

ROWS = torch.zeros(2, 5, 6, dtype=torch.float64)
IMAGE = torch.zeros(2, 3, 4, 4, dtype=torch.float64)


class Attention(nn.Module):
    """Four heads of three; `way` says how they are multiplied."""

    def __init__(self, way, width=6, packed=False):
        super().__init__()
        self.way, self.heads, self.size, self.packed = way, 4, 3, packed
        if packed:
            self.qkv = nn.Linear(width, 36)
        else:
            self.q, self.k, self.v = (nn.Linear(width, 12) for _ in range(3))
        self.out = nn.Linear(12, width)

    def forward(self, x):
        n, t, _ = x.shape
        if self.packed:
            packed = self.qkv(x).reshape(n, t, 3, self.heads, self.size)
            q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (
                layer(x).view(n, t, -1, self.size).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
        if self.way == "one operation":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.way == "einsum":
            weights = torch.einsum("bhtd,bhmd->bhtm", q, k).softmax(-1)
            y = torch.einsum("bhtm,bhmd->bhtd", weights, v)
        elif self.way == "bmm":
            q, k, v = (each.reshape(-1, t, self.size) for each in (q, k, v))
            y = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).view(n, -1, t, self.size)
        else:
            y = ((q @ k.transpose(-2, -1)) * self.size**-0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


class Shared(nn.Module):
    """Eight heads of queries on four of keys and values."""

    def __init__(self, way):
        super().__init__()
        self.way, self.out = way, nn.Linear(16, 6)
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x):
        layers = (self.q, self.k, self.v)
        q, k, v = (layer(x).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in layers)
        if self.way == "repeated":
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        elif self.way == "expanded":
            k, v = (each[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.way == "flag")
        return self.out(y.transpose(1, 2).flatten(2))


def normed(m, x):
    """Queries and keys are normed within each head."""
    q, k, v = (f(x).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (m.q, m.k, m.v))
    return m.c(F.scaled_dot_product_attention(m.one(q), m.two(k), v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, attention, width):
        super().__init__()
        self.one, self.attention, self.two = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x):
        x = x + self.attention(self.one(x))
        return x + self.mlp(self.two(x))


class Packed(nn.Module):
    """`nn.MultiheadAttention` on itself."""

    def __init__(self, width, heads):
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


def weights(run, **more):
    """Parameters without layers: `w` makes eight features of six, `u` three of them."""
    return Net(run, w=torch.zeros(6, 8), u=torch.zeros(8, 3), **more)


def rows(run, **sizes):
    return Net(run, **{name: nn.Linear(*size) for name, size in sizes.items()})


def masked(m, x):
    """A learned bias by head is added to the scores."""
    q, k, v = (f(x).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (m.q, m.k, m.v))
    return m.c(F.scaled_dot_product_attention(q, k, v, attn_mask=m.p).transpose(1, 2).flatten(2))


def padded(m, x):
    """Zeros for each head and a mask, which is copied for each head, are added to the scores."""
    q, k, v = (f(x).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (m.q, m.k, m.v))
    mask = (x.sum(-1) > 0)[:, None, None].double()
    mask = mask.expand(-1, q.shape[1], -1, -1) + torch.zeros(1, q.shape[1], 5, 5).double() + mask
    return m.c(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


def gated(m, x):
    one, two = m.a(x).chunk(2, -1)
    return m.b(one * m.s(two.mT).mT)


def implicit(m, x):
    """The result's letters are not given: those that stand once, sorted."""
    return torch.einsum("bti,iz", F.relu(torch.einsum("bti,iz", x, m.w)), m.u)


def dots(m, x):
    return torch.einsum("...i,io->...o", F.relu(torch.einsum("...i,io->...o", x, m.w)), m.u)


def by_heads(m, x):
    return torch.einsum("bthd,hdo->bto", F.relu(torch.einsum("bti,ihd->bthd", x, m.w)), m.u)


HEADS = {"q": 4}
THREE = {"q": (6, 8), "k": (6, 8), "v": (6, 8), "c": (8, 6)}
NETWORKS = [
    *((way, Attention(way), HEADS) for way in ("one operation", "products", "einsum", "bmm")),
    ("packed", Attention("one operation", packed=True), {"qkv": 4}),
    ("packed products", Attention("products", packed=True), {"qkv": 4}),
    *((f"shared heads, {way}", Shared(way), HEADS) for way in ("flag", "repeated", "expanded")),
    (
        "learned bias by head",
        Net(masked, p=torch.zeros(4, 5, 5), **{k: nn.Linear(*s) for k, s in THREE.items()}),
        {"p": 4},
    ),
    ("mask for each head", Net(padded, **{k: nn.Linear(*s) for k, s in THREE.items()}), HEADS),
    (
        "normed heads",
        Net(
            normed,
            one=nn.LayerNorm(2),
            two=nn.RMSNorm(2),
            **{k: nn.Linear(*s) for k, s in THREE.items()},
        ),
        HEADS,
    ),
    ("matmul", weights(lambda m, x: F.relu(x @ m.w) @ m.u), {"u": 8}),
    ("mm", weights(lambda m, x: torch.mm(F.relu(torch.mm(x[:, 0], m.w)), m.u)), {"u": 8}),
    (
        "addmm",
        weights(
            lambda m, x: torch.addmm(m.d, torch.addmm(m.b, x[:, 0], m.w).relu(), m.u),
            b=torch.zeros(8),
            d=torch.zeros(3),
        ),
        {"u": 8},
    ),
    ("weight on the left", weights(lambda m, x: m.u.mT @ F.relu(m.w.mT @ x.mT)), {"u": 8}),
    ("einsum of weights", weights(implicit), {"u": 8}),
    ("einsum with dots", weights(dots), {"u": 8}),
    (
        "einsum by heads",
        Net(by_heads, w=torch.zeros(6, 4, 2), u=torch.zeros(4, 2, 3)),
        {"u": 4, "w": 2},
    ),
    (
        "gated",
        rows(lambda m, x: m.c(F.silu(m.a(x)) * m.b(x)), a=(6, 8), b=(6, 8), c=(8, 6)),
        {"a": 8},
    ),
    ("gated over places", rows(gated, a=(6, 16), s=(5, 5), b=(8, 6)), {"a": 8}),
    ("mixed places", rows(lambda m, x: m.b(F.gelu(m.a(x.mT))).mT, a=(5, 8), b=(8, 5)), {"a": 8}),
    ("two dimensions become one", rows(lambda m, x: m.c((m.a(x).mT @ m.b(x)).flatten(1)),
     a=(6, 8), b=(6, 4), c=(32, 2)), {}),
    ("bilinear", Net(lambda m, x: m.c(m.b(m.a(x), x)), a=nn.Linear(6, 8),
     b=nn.Bilinear(8, 6, 4), c=nn.Linear(4, 2)), {"a": 8, "b": 4}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "sizes"), [case[1:] for case in NETWORKS], ids=[case[0] for case in NETWORKS]
)
def test_matrix_products_are_cut_correctly(model, sizes):
    check(model, ROWS, sizes)


def test_products_without_weights_are_cut_correctly():
    def run(m, x):
        return m.c(F.relu(m.q(x)) @ (F.relu(m.k(x)).mT @ m.v(x)))

    model = rows(run, q=(6, 8), k=(6, 8), v=(6, 4), c=(4, 6))
    check(model, ROWS, {"q": 8, "v": 4}, {"q"})


def test_transformer_is_cut_correctly():
    model = nn.Sequential(
        nn.Linear(6, 8),
        Block(Attention("one operation", 8), 8),
        Block(Attention("products", 8, packed=True), 8),
        nn.Linear(8, 2),
    )
    sizes = {"0": 8, "1.attention.q": 4, "1.mlp.0": 16, "2.attention.qkv": 4, "2.mlp.0": 16}
    _, cut = check(model, ROWS, sizes, {"0"})
    assert (cut[2].attention.heads, cut[2].attention.size) == (2, 3)


def test_multihead_attention_loses_heads_and_width_together():
    model = nn.Sequential(nn.Linear(6, 8), Packed(8, 4), nn.Linear(8, 2))
    _, cut = check(model, ROWS, {"0": 8, "1.inner": 4, "1.inner.out_proj": 8})
    assert (cut[1].inner.embed_dim, cut[1].inner.num_heads) == (4, 2)


def test_torchs_transformer_layers_are_cut_correctly():
    layer = nn.TransformerEncoderLayer(6, 2, 16, batch_first=True)
    sizes = {"self_attn": 2, "linear1": 16}
    check(layer, ROWS, sizes)  # its width is that of the input
