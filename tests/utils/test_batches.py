# SPDX-License-Identifier: MIT
"""A list of images or of dictionaries holds one example each."""

import torch

from regrow.utils.batches import batch_size, noise_like, resize_batch

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
