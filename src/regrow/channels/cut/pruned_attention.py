# SPDX-License-Identifier: MIT
"""PrunedMultiheadAttention, and the sizes of modules with `nn.MultiheadAttention` after a cut."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` without some of its heads.

    `torch` computes the size of a head as `embed_dim // num_heads`, which fails if heads are
    removed and the embedding keeps its width. Here it is `head_dim`. A cut sets the class of such
    modules; parameters, their names and all arguments stay.

    Example:
        >>> attention = nn.MultiheadAttention(8, 4, batch_first=True)
        >>> x = torch.randn(2, 5, 8)
        >>> whole, _ = attention(x, x, x)
        >>> attention.__class__ = PrunedMultiheadAttention
        >>> torch.allclose(attention(x, x, x)[0], whole, atol=1e-6)
        True
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention; see `nn.MultiheadAttention.forward`.

        `is_causal` is a hint that `attn_mask` is causal, and is not used.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("need attn_mask if is_causal=True, as in nn.MultiheadAttention")
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = query[None], key[None], value[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(query, key, value)
        length, masks = k.shape[2], list[Tensor]()
        k, v = self._appended(k, self.bias_k), self._appended(v, self.bias_v)
        if attn_mask is not None:  # (L, S) or (N * heads, L, S)
            batch = len(q) if attn_mask.dim() == 3 else 1
            masks = [attn_mask.reshape(batch, -1, *attn_mask.shape[-2:])]
        if key_padding_mask is not None:  # (N, S)
            masks.append(key_padding_mask.reshape(-1, 1, 1, length))
        added = [_additive(given, q, k.shape[2] - length) for given in masks]
        mask = reduce(torch.add, added) if added else None
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.mT
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if is_batched else weights[0]
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = F.linear(y.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not is_batched:
            return out[0], weights
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Project inputs `(N, L, width)` to queries, keys and values `(N, heads, L, head_dim)`."""
        biases = [None] * 3 if self.in_proj_bias is None else [*self.in_proj_bias.chunk(3)]
        inputs = zip((query, key, value), _projections(self), biases, strict=True)
        projected = (F.linear(x, weight, bias) for x, weight, bias in inputs)
        return [x.reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for x in projected]

    def _appended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Append a learned and a zero position, if there are any, to `(N, heads, S, head_dim)`."""
        if bias is not None:  # (1, 1, heads * head_dim)
            more = bias.reshape(1, -1, 1, self.head_dim)
            x = torch.cat([x, more.expand(len(x), -1, -1, -1)], 2)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x


def _additive(mask: Tensor, like: Tensor, more: int) -> Tensor:
    """Turn a mask, True = not attended, into one that is added; `more` positions are attended."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return F.pad(mask, (0, more))


def _projections(module: nn.MultiheadAttention) -> list[Tensor]:
    """Return the weights of queries, keys and values, each `(heads * head_dim, width)`."""
    if module.in_proj_weight is None:
        return [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    return [*module.in_proj_weight.chunk(3)]


def attention_sizes(module: nn.MultiheadAttention) -> dict[str, Any]:
    """Return the attributes that the tensors imply, and the class that can compute with them."""
    names = ("embed_dim", "kdim", "vdim")
    sizes = {name: w.shape[1] for name, w in zip(names, _projections(module), strict=True)}
    sizes["num_heads"] = module.out_proj.weight.shape[1] // module.head_dim
    if type(module) not in (nn.MultiheadAttention, PrunedMultiheadAttention):
        return sizes
    whole = _is_whole(module)
    made = nn.MultiheadAttention if whole else PrunedMultiheadAttention
    same = whole and module.in_proj_weight is not None
    return sizes | {"_qkv_same_embed_dim": same, "__class__": made}


def transformer_sizes(module: nn.Transformer | nn.TransformerEncoder) -> dict[str, Any]:
    """Return the attributes that the attention in it implies."""
    found = [m for m in module.modules() if isinstance(m, nn.MultiheadAttention)]
    if isinstance(module, nn.TransformerEncoder):
        return {"use_nested_tensor": module.use_nested_tensor and all(map(_is_whole, found))}
    return {"d_model": attention_sizes(found[0])["embed_dim"]} if found else {}


def _is_whole(module: nn.MultiheadAttention) -> bool:
    """Whether all heads together are as wide as the inputs, as `torch` needs it."""
    out = module.out_proj.weight
    return bool(_projections(module)[0].shape[1] == out.shape[0] == out.shape[1])
