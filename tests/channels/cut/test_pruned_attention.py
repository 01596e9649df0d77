# SPDX-License-Identifier: MIT
"""Attention of `torch.nn` without some of its heads, beside `torch` and the formula."""

import copy

import pytest
import torch
from cut_oracle import check, distinct, noise
from torch import nn

from regrow import load
from regrow.channels import ChannelCut, groups, prune
from regrow.channels.config import ChannelConfig
from regrow.channels.cut.pruned_attention import PrunedMultiheadAttention
from regrow.channels.pruner import ChannelPruner
from regrow.io.checkpoints import KEY

ROWS = noise(torch.zeros(3, 5, 8, dtype=torch.float64))
LONGER = noise(torch.zeros(3, 6, 8, dtype=torch.float64)).flip(0)
PADDED = torch.zeros(3, 6, dtype=torch.bool)
PADDED[1, 4:] = PADDED[2, 3] = True
LATER = torch.ones(5, 6, dtype=torch.bool).triu(2)
BY_HEAD = noise(torch.zeros(12, 5, 6, dtype=torch.float64))
MASKS = {
    "none": {},
    "padding": {"key_padding_mask": PADDED},
    "float padding": {"key_padding_mask": PADDED.double() * -3},
    "places": {"attn_mask": LATER},
    "places of each head": {"attn_mask": BY_HEAD},
    "both": {"attn_mask": LATER, "key_padding_mask": PADDED},
    "both, floats": {"attn_mask": BY_HEAD, "key_padding_mask": PADDED.double() * -3},
}
KINDS = {
    "plain": {},
    "without biases": {"bias": False},
    "learned positions": {"add_bias_kv": True, "add_zero_attn": True},
    "widths of its own": {"kdim": 4, "vdim": 6},
}


def attention(heads=4, **more):
    return distinct(nn.MultiheadAttention(8, heads, **more))


def run(module, query, memory, masks=(), **more):
    """Query and memory are batch first; keys and values get as many columns as they need."""
    given = (query, memory[..., : module.kdim], memory[..., : module.vdim])
    if not module.batch_first and query.dim() == 3:
        given = (x.transpose(0, 1) for x in given)
    out, weights = module(*given, **dict(masks), **more)
    swap = not module.batch_first and query.dim() == 3
    return out.transpose(0, 1) if swap else out, weights


def equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    return True


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_with_all_heads_it_is_torchs(kind, masks):
    for first in (False, True):
        module = attention(batch_first=first, **kind)
        pruned = copy.deepcopy(module)
        pruned.__class__ = PrunedMultiheadAttention
        for weights, average in ((False, True), (True, True), (True, False)):
            more = {"need_weights": weights, "average_attn_weights": average}
            expected = run(module, ROWS, LONGER, masks, **more)
            assert equal(run(pruned, ROWS, LONGER, masks, **more), expected)
            if {*masks} <= {"key_padding_mask"}:
                one = {name: mask[1] for name, mask in masks.items()}
                expected = run(module, ROWS[1], LONGER[1], one, **more)
                assert equal(run(pruned, ROWS[1], LONGER[1], one, **more), expected)


def test_causal_masks_and_masks_of_each_head_without_a_batch():
    module = attention()
    pruned = copy.deepcopy(module)
    pruned.__class__ = PrunedMultiheadAttention
    masks = {"attn_mask": BY_HEAD[:4]}
    assert equal(run(pruned, ROWS[0], LONGER[0], masks), run(module, ROWS[0], LONGER[0], masks))
    causal = {"attn_mask": torch.ones(5, 6, dtype=torch.bool).triu(1), "is_causal": True}
    for weights in (False, True):
        expected = run(module, ROWS, LONGER, causal, need_weights=weights)
        assert equal(run(pruned, ROWS, LONGER, causal, need_weights=weights), expected)
    with pytest.raises(RuntimeError, match="need attn_mask"):
        run(pruned, ROWS, LONGER, is_causal=True)


def test_dropout_is_torchs_with_the_same_seed():
    module = attention(dropout=0.5).train()
    pruned = copy.deepcopy(module)
    pruned.__class__ = PrunedMultiheadAttention
    found = []
    for each in (module, pruned):
        torch.manual_seed(0)
        found.append(run(each, ROWS, LONGER, average_attn_weights=False))
    share = (found[1][1] == 0).double().mean()
    assert found[0][1].shape == found[1][1].shape
    assert 0.4 < share < 0.6


class Cross(nn.Module):
    """Rows attend to a memory; the width of both is that of the inputs, so only heads go."""

    def __init__(self, **kind):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True, **kind)

    def forward(self, x, memory, **masks):
        keys, values = memory[..., : self.attention.kdim], memory[..., : self.attention.vdim]
        return self.attention(x, keys, values, need_weights=False, **masks)[0]


def by_formula(module, x, memory, kept):
    """Attention of the kept heads, one after the other, from the weights of all heads."""
    if module.in_proj_weight is None:
        rows = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    else:
        rows = module.in_proj_weight.split(8)
    biases = torch.zeros(3, 8) if module.in_proj_bias is None else module.in_proj_bias.split(8)
    result = 0 if module.out_proj.bias is None else module.out_proj.bias
    for head in kept:
        own = slice(2 * head, 2 * head + 2)
        inputs = (x, memory[..., : module.kdim], memory[..., : module.vdim])
        q, k, v = (i @ w[own].T + b[own] for i, w, b in zip(inputs, rows, biases, strict=True))
        if module.bias_k is not None:
            k = torch.cat([k, module.bias_k[0, :, own].expand(3, 1, 2)], 1)
            v = torch.cat([v, module.bias_v[0, :, own].expand(3, 1, 2)], 1)
        if module.add_zero_attn:
            k, v = (torch.cat([t, torch.zeros(3, 1, 2, dtype=t.dtype)], 1) for t in (k, v))
        scores = (q @ k.transpose(1, 2)) / 2**0.5
        exponentials = scores.exp()
        y = exponentials / exponentials.sum(-1, keepdim=True) @ v
        result = result + y @ module.out_proj.weight[:, own].T
    return result


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kept_heads_compute_what_the_formula_says(kind):
    model = distinct(Cross(**kind))
    original = copy.deepcopy(model.attention)
    plan = prune(model, (ROWS, LONGER), 0.5)
    kept = plan.kept["attention.out_proj.weight"][1].view(4, 2)[:, 0].nonzero().flatten().tolist()
    assert len(kept) == 2
    with torch.no_grad():
        expected = by_formula(original, ROWS, LONGER, kept)
        torch.testing.assert_close(model(ROWS, LONGER), expected, rtol=1e-12, atol=1e-12)
    attended = model.attention
    assert isinstance(attended, nn.MultiheadAttention)
    assert (attended.num_heads, attended.head_dim, attended.embed_dim) == (2, 2, 8)
    assert (attended.kdim, attended.vdim) == (kind.get("kdim", 8), kind.get("vdim", 8))
    assert [*model.state_dict()] == [f"attention.{name}" for name in original.state_dict()]
    plan.undo()
    assert type(model.attention) is nn.MultiheadAttention
    assert model.attention.num_heads == 4
    with torch.no_grad():
        expected = by_formula(original, ROWS, LONGER, range(4))
        torch.testing.assert_close(model(ROWS, LONGER), expected, rtol=1e-12, atol=1e-12)


class Encoder(nn.Module):
    """`nn.TransformerEncoder` between two layers, or on its inputs."""

    def __init__(self, width=0, heads=4, **more):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width or 8, heads, 16, 0.0, **more)
        self.one = nn.Linear(8, width) if width else nn.Identity()
        self.layers = nn.TransformerEncoder(layer, 2)
        self.two = nn.Linear(width or 8, 2)

    def forward(self, x, padding=None):
        if not self.layers.layers[0].self_attn.batch_first:
            x = x.transpose(0, 1)
        return self.two(self.layers(self.one(x), src_key_padding_mask=padding))


def fast_and_slow(model, *inputs):
    """The outputs of the fused operations, which need eval mode without gradients, and others."""
    model.eval()
    slow = model(*inputs)
    with torch.no_grad():
        return model(*inputs), slow.detach(), model.train()(*inputs).detach()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_heads_alone_leave_encoder_layers_that_run_in_all_modes(first, norm_first):
    model = distinct(Encoder(batch_first=first, norm_first=norm_first))
    free = {g.name: g.size for g in groups(model, ROWS) if not g.fixed_reason}
    blocks = ("layers.layers.0", "layers.layers.1")
    assert free == {
        f"{b}.{n}": s for b in blocks for n, s in {"self_attn": 4, "linear1": 16}.items()
    }
    original = copy.deepcopy(model)
    plan = prune(model, ROWS, 0.5, distribution="uniform", round_to=1)
    assert plan.not_prunable.keys().isdisjoint(free)
    assert {m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)} == {2}
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            for dim, keep in plan.kept.get(name, {}).items():
                parameter.index_fill_(dim, (~keep).nonzero().flatten(), 0)
    masked, fast = original(ROWS).detach(), fast_and_slow(model, ROWS)
    assert equal(fast, [masked] * 3)


def test_heads_and_width_in_proportion_leave_torchs_own_class():
    model = distinct(Encoder(width=8, batch_first=True))
    plan = prune(model, ROWS, 0.5, distribution="uniform", round_to=1)
    assert model.one.out_features == 4
    built = distinct(Encoder(width=4, heads=2, batch_first=True))
    built.layers.layers[0].linear1 = built.layers.layers[1].linear1 = None
    for old, new in zip(model.layers.layers, built.layers.layers, strict=True):
        assert type(old.self_attn) is nn.MultiheadAttention
        new.linear1, new.linear2 = copy.deepcopy(old.linear1), copy.deepcopy(old.linear2)
        sizes = ("embed_dim", "num_heads", "head_dim", "kdim", "vdim", "_qkv_same_embed_dim")
        for name in sizes:
            assert getattr(old.self_attn, name) == getattr(new.self_attn, name), name
    built.load_state_dict(model.state_dict())
    assert equal(fast_and_slow(model, ROWS), fast_and_slow(built, ROWS))
    plan.undo()
    assert model.layers.layers[0].self_attn.embed_dim == 8


def test_padding_masks_do_not_hold_heads_back():
    """The encoder makes nested tensors of padded rows in eval mode, unless heads were removed."""
    model = distinct(Encoder(batch_first=True))
    padding = PADDED[:, :5]
    assert model.layers.use_nested_tensor
    original, inputs = copy.deepcopy(model), (ROWS, padding)
    plan = prune(model, inputs, 0.5, distribution="uniform", round_to=1)
    assert {"layers.layers.0.self_attn", "layers.layers.1.self_attn"} <= {*plan.removed}
    assert not model.layers.use_nested_tensor
    kept = plan.kept
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            for dim, keep in kept.get(name, {}).items():
                parameter.index_fill_(dim, (~keep).nonzero().flatten(), 0)
    masked = original.train()(*inputs).detach()
    for found in fast_and_slow(model, *inputs):
        assert equal([found[~padding]], [masked[~padding]])
    plan.undo()
    assert model.layers.use_nested_tensor


def test_checkpoints_and_plans_restore_the_class(tmp_path):
    model = distinct(Encoder(batch_first=True))
    plan = prune(model, ROWS, 0.5, distribution="uniform", round_to=1)
    torch.save({"state_dict": model.state_dict(), KEY: plan.state_dict()}, tmp_path / "last.ckpt")
    found = load(distinct(Encoder(batch_first=True)), tmp_path / "last.ckpt")
    assert equal(fast_and_slow(found, ROWS), fast_and_slow(model, ROWS))
    assert type(found.layers.layers[0].self_attn) is PrunedMultiheadAttention
    again = ChannelCut.from_state(torch.load(tmp_path / "last.ckpt")[KEY])
    again.restore_shapes(found)
    assert type(found.layers.layers[0].self_attn) is nn.MultiheadAttention
    assert found.layers.use_nested_tensor
    assert found.layers.layers[0].self_attn.num_heads == 4
    assert found(ROWS).shape == (3, 5, 2)


class Translation(nn.Module):
    """`nn.Transformer` with a causal mask made in forward, and padding masks."""

    def __init__(self, width=8, heads=4):
        super().__init__()
        self.words = nn.Embedding(11, width)
        self.transformer = nn.Transformer(width, heads, 1, 1, 16, 0.0, batch_first=True)
        self.out = nn.Linear(width, 11)

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        y = self.transformer(
            self.words(source),
            self.words(target),
            tgt_mask=mask.to(self.out.weight),
            src_key_padding_mask=source == 0,
            memory_key_padding_mask=source == 0,
        )
        return self.out(y)


def test_transformer_loses_heads_width_and_hidden_layers():
    model = distinct(Translation())
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])
    sizes = {g.name: g.size for g in groups(model, (ids, ids)) if not g.fixed_reason}
    encoder, decoder = "transformer.encoder.layers.0", "transformer.decoder.layers.0"
    assert sizes == {
        f"{encoder}.self_attn.out_proj": 8,
        f"{encoder}.self_attn": 4,
        f"{encoder}.linear1": 16,
        f"{decoder}.self_attn": 4,
        f"{decoder}.multihead_attn": 4,
        f"{decoder}.linear1": 16,
    }
    plan = prune(model, (ids, ids), 0.5, distribution="uniform", round_to=1)
    assert plan.removed == {name: size // 2 for name, size in sizes.items()}
    assert model.transformer.d_model == 4
    built = distinct(Translation(4, 2))
    for old, new in zip(model.modules(), built.modules(), strict=True):
        if isinstance(old, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            new.linear1, new.linear2 = copy.deepcopy(old.linear1), copy.deepcopy(old.linear2)
    built.load_state_dict(model.state_dict())
    assert equal(fast_and_slow(model, ids, ids), fast_and_slow(built, ids, ids))


def test_excluded_attention_keeps_all_its_parts():
    model = Encoder(batch_first=True).double()
    before = {n: p.shape for n, p in model.named_parameters() if ".0.self_attn." in n}
    plan = prune(model, ROWS, 0.3, exclude=["layers.layers.0.self_attn"], round_to=1)
    assert before == {n: p.shape for n, p in model.named_parameters() if ".0.self_attn." in n}
    assert "is excluded" in plan.not_prunable["layers.layers.0.self_attn"]
    assert "layers.layers.0.linear1" in plan.removed


class Own(nn.MultiheadAttention):
    """May have a forward pass of its own, and so keeps its class."""


def test_heads_that_cannot_be_cut_leave_hidden_layers_free():
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
    layer.self_attn.__class__ = Own
    _, cut = check(layer, ROWS, {"self_attn": 4, "linear1": 16}, refused={"self_attn"})
    assert type(cut.self_attn) is Own
    assert cut.linear1.out_features == 8


@pytest.mark.parametrize("width", [0, 8])
def test_pruner_masks_and_cuts_heads_as_pruning_at_once_does(width):
    model = distinct(Encoder(width=width, batch_first=True))
    free = {g.name for g in groups(model, ROWS) if not g.fixed_reason}
    with torch.no_grad():  # as in a validation loop, in which torch fuses operations
        pruner = ChannelPruner(model, ROWS, ChannelConfig(distribution="uniform", round_to=1))
        assert {group.name for group in pruner.free} == free
        pruner.prune_to(0.5)
        model.eval()
        masked = model(ROWS)
        pruner.compact()
    assert {m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)} == {2}
    if not width:  # a norm over removed channels differs from one over zeros
        assert equal(fast_and_slow(model, ROWS), [masked] * 3)
    pruner.prune_to(0.75)
    pruner.compact()
    assert {m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)} == {1}
    model(ROWS).sum().backward()
    pruner.expand()
    assert type(model.layers.layers[0].self_attn) is nn.MultiheadAttention
    assert equal([model.eval()(ROWS).shape], [torch.Size([3, 5, 2])]) is True
