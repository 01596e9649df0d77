# SPDX-License-Identifier: MIT
"""Examples in lists and other batches; relative differences against quotients by hand."""

import math

import pytest
import torch

from regrow.utils.batches import batch_size, noise_like, relative_difference, resize_batch

NAN, INF = math.nan, math.inf
MASKED = -1e9

IMAGES = [torch.full((3, 4, 4), float(i)) for i in range(3)]  # as many channels as images
BOXES = [{"boxes": torch.full((3, 4), float(i))} for i in range(3)]


def test_lists_of_examples_are_resized_whole():
    assert batch_size((IMAGES, BOXES)) == 3
    images, boxes = resize_batch((IMAGES, BOXES), 4)
    assert [float(x.mean()) for x in images] == [0, 1, 2, 0]
    assert [x["boxes"].shape for x in boxes] == [(3, 4)] * 4
    assert len(resize_batch(IMAGES, 2)) == 2


def test_noise_leaves_boxes_as_they_are():
    images, boxes = noise_like((IMAGES, BOXES))
    assert all(x.shape == (3, 4, 4) and x.std() > 0 for x in images)
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(boxes, BOXES, strict=True))


def test_lists_of_feature_maps_are_no_examples():
    maps = [torch.zeros(5, 2, 4, 4), torch.zeros(5, 2, 2, 2)]
    assert batch_size(maps) == 5
    assert [len(x) for x in resize_batch(maps, 2)] == [2, 2]


@pytest.mark.parametrize(
    ("found", "expected", "by_hand"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, 3.5], [1.0, 4.0], 0.5 / 4),
        ([1.5, -4.0], [1.0, -4.0], 0.5 / 4),
        ([1.0, 1e-30, 2e-9], [1.0, 1e-30, 1e-9], 1e-9),  # as of a softmax
        ([[1.0, 2.0], [3.0, 6.0]], [[1.0, 2.0], [3.0, 8.0]], 2 / 8),
        ([9.0, 1.0], [1.0, 1.0], 8 / 1),
        ([0.0, 0.25], [0.0, 0.0], 0.25),
        ([], [], 0),
        ([0.0, 0.0], [0.0, -0.0], 0),
        ([NAN, INF, -INF], [NAN, INF, -INF], 0),
        ([NAN, INF, 1.0], [NAN, INF, 2.0], 1 / 2),
        ([INF, 1.0], [1.0, 1.0], INF),
        ([1.0, 1.0], [INF, 1.0], INF),
        ([-INF, 1.0], [INF, 1.0], INF),
        ([NAN, 1.0], [1.0, 1.0], NAN),
        ([1.0, 1.0], [NAN, 1.0], NAN),
    ],
)
def test_the_largest_difference_is_divided_by_the_largest_magnitude(found, expected, by_hand):
    given = relative_difference(torch.tensor(found), torch.tensor(expected))
    assert given == pytest.approx(by_hand, nan_ok=True)


@pytest.mark.parametrize(
    ("found", "expected", "by_hand"),
    [
        ([1.0, 1.5, MASKED], [1.0, 2.0, MASKED], 0.5 / 2),
        ([1.5, *[MASKED] * 9], [2.0, *[MASKED] * 9], 0.5 / 2),  # most of the values
        ([0.0, 0.0, 1.5, MASKED], [0.0, 0.0, 2.0, MASKED], 0.5 / 2),
        ([1.0, 1.5, 900.0], [1.0, 2.0, 900.0], 0.5 / 900),  # no constant: below 1000 times
        ([1.0, 1.5, -1e8], [1.0, 2.0, MASKED], 0.9),  # it differs
        ([MASKED, MASKED], [MASKED, MASKED], 0),
    ],
)
def test_equal_constants_are_not_the_largest_magnitude(found, expected, by_hand):
    given = relative_difference(torch.tensor(found), torch.tensor(expected))
    assert given == pytest.approx(by_hand)


def test_magnitudes_of_complex_numbers_count():
    expected = torch.tensor([3 + 4j, 1j])
    assert relative_difference(expected, expected.clone()) == 0
    assert relative_difference(expected + torch.tensor([0, 1]), expected) == pytest.approx(1 / 5)
    assert relative_difference(expected.conj(), expected) == pytest.approx(8 / 5)


@pytest.mark.parametrize(
    ("dtype", "found", "expected", "by_hand"),
    [
        (torch.bool, [True, False], [True, False], 0),
        (torch.bool, [True, False], [True, True], 1),
        (torch.uint8, [1, 250], [3, 250], 2 / 250),  # 1 - 3 is 254 in this type
        (torch.int8, [-128, 1], [127, 1], 255 / 127),
        (torch.int32, [2**24 + 1, 9], [2**24, 9], 2**-24),  # equal in float32
        (torch.float16, [6e4, 1.0], [-6e4, 1.0], 2),  # 12e4 is no number of this type
        (torch.bfloat16, [1.0, 2.0], [1.0, 4.0], 2 / 4),
    ],
)
def test_other_types_are_compared_in_wide_numbers(dtype, found, expected, by_hand):
    tensors = (torch.tensor(values, dtype=dtype) for values in (found, expected))
    assert relative_difference(*tensors) == pytest.approx(by_hand, rel=2e-3)


def test_parameters_are_compared_without_gradients():
    expected = torch.ones(3, requires_grad=True)
    assert relative_difference(2 * expected, expected) == 1
    assert expected.grad is None
