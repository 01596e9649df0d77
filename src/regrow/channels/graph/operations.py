# SPDX-License-Identifier: MIT
"""Tables of operator names."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The same numbers at the same places.
SAME = _words(
    """
    alias alpha_dropout clone contiguous detach detach_copy dropout feature_dropout lift
    lift_fresh lift_fresh_copy native_dropout positive requires_grad to type_as _to_copy
    """
)


# Data movement: runs on labels as it runs on numbers.
MOVES = _words(
    """
    chunk diagonal expand expand_copy flatten flip fliplr
    flipud index index_select ravel moveaxis movedim narrow permute permute_copy pixel_shuffle
    pixel_unshuffle repeat repeat_interleave reshape reshape_as roll rot90 select slice split
    split_with_sizes squeeze squeeze_copy swapaxes swapdims t tensor_split tile transpose
    unbind unflatten unfold unsqueeze unsafe_chunk unsafe_split unsafe_split_with_sizes
    unsafe_view view view_as _unsafe_view numpy_T mT adjoint matrix_H
    """
)


# Of those, what needs contiguous memory.
VIEWS = _words(
    """
    view view_as reshape_as _unsafe_view unsafe_view
    """
)


# Of those, what gives pieces.
SPLITS = _words(
    """
    chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split unsafe_split_with_sizes
    """
)


# Several tensors become one.
JOINS = _words(
    """
    cat concat concatenate stack hstack vstack
    """
)


# Made from sizes alone, and different at every place.
COUNTERS = _words(
    """
    arange eye linspace logspace
    """
)


# Made from sizes alone, and the same everywhere or drawn by lot: fits whatever is cut.
CREATORS = _words(
    """
    empty empty_like full full_like new_empty new_full new_ones new_zeros
    ones ones_like rand rand_like randn randn_like scalar_tensor zeros zeros_like
    """
)


# Adds constant places.
PADS = _words(
    """
    pad constant_pad_nd
    """
)


# Elementwise, though torch does not tag them so.
ELEMENTWISE = _words(
    """
    copy divide expand_as fill floor_divide hardsigmoid hardswish log_sigmoid masked_fill mish
    multiply rrelu selu special_expit subtract tanhshrink true_divide where
    """
)
