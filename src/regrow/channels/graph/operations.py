# SPDX-License-Identifier: MIT
"""Operator names, grouped by what the operator does to channel labels."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Values and positions stay.
IDENTITY = _names(
    "alias alpha_dropout clone contiguous detach detach_copy dropout feature_dropout lift "
    "lift_fresh lift_fresh_copy native_dropout positive requires_grad to type_as _to_copy"
)
# Data movement that needs contiguous memory.
VIEWS = _names("view view_as reshape_as _unsafe_view unsafe_view")
# Data movement that returns several pieces.
SPLITS = _names(
    "chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split unsafe_split_with_sizes"
)
# Data movement that copies a position along a dimension of length 1.
REPEATS = _names("expand expand_copy repeat tile")
# All data movement: the operator itself is run on the labels.
MOVES = (VIEWS | SPLITS | REPEATS) | _names(
    "diagonal flatten flip fliplr flipud index index_select ravel moveaxis "
    "movedim narrow permute permute_copy pixel_shuffle pixel_unshuffle repeat_interleave "
    "reshape roll rot90 select slice squeeze squeeze_copy swapaxes swapdims t transpose "
    "unbind unflatten unfold unsqueeze numpy_T mT adjoint matrix_H"
)
# Several tensors become one.
JOINS = _names("cat concat concatenate stack hstack vstack")
# Created from sizes alone, with values that differ by position.
COUNTERS = _names("arange eye linspace logspace")
# Created from sizes alone, constant or random: fits any cut.
CREATORS = _names(
    "empty empty_like full full_like new_empty new_full new_ones new_zeros ones ones_like rand "
    "rand_like randn randn_like scalar_tensor zeros zeros_like"
)
# Adds constant positions.
PADS = _names("pad constant_pad_nd")
# Elementwise, although torch does not tag them so.
ELEMENTWISE = _names(
    "copy divide expand_as fill floor_divide hardsigmoid hardswish log_sigmoid masked_fill mish "
    "multiply rrelu selu special_expit subtract tanhshrink true_divide where"
)
# Recurrent layers and cells, which take the states before their first step.
RECURRENT = _names("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
# Sums over channels.
PRODUCTS = RECURRENT | _names(
    "addmm baddbmm bilinear bmm einsum linear matmul mm scaled_dot_product_attention"
)
# Positions are chosen by values, such as scores.
CHOICES = _names(
    "argmax argsort gather index index_select masked_select nms nonzero sort take topk"
)
# Pooling of regions: (features, boxes).
POOLS = _names("ps_roi_align ps_roi_pool roi_align roi_pool")
# The same for all inputs that are finite.
OVERFLOW_CHECKS = _names("isfinite isinf isnan")
