# SPDX-License-Identifier: MIT
"""Deformable attention and the choice of queries, as detectors with transformers have them."""

import pytest
import torch
from cut_oracle import Net, check
from torch import nn
from torch.nn import functional as F

HEADS, POINTS, SIDE, WIDTH = 4, 3, 3, 8
IMAGE = torch.zeros(2, 6, SIDE, SIDE, dtype=torch.float64)
ROWS = torch.zeros(2, 5, 6, dtype=torch.float64)


class Deformable(nn.Module):
    """Each query's heads read an image at some points of their own."""

    def __init__(self, way, heads=HEADS, points=POINTS):
        super().__init__()
        self.way, self.heads, self.points = way, heads, points
        self.value, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 2)
        self.offset = nn.Linear(6, heads * points * 2)
        self.score = nn.Linear(6, heads * points)

    def forward(self, image):
        x = image.flatten(2).transpose(1, 2)
        batch, count, _ = x.shape
        value = self.value(x).view(batch, count, self.heads, -1).permute(0, 2, 3, 1)
        value = value.reshape(batch * self.heads, -1, SIDE, SIDE)
        places = self.offset(x).view(batch, count, self.heads, -1, 2).tanh()
        places = places.transpose(1, 2).flatten(0, 1)
        found = F.grid_sample(value, places, mode=self.way, align_corners=False)
        weight = self.score(x).view(batch, count, self.heads, -1).sigmoid()
        weight = weight.transpose(1, 2).flatten(0, 1)[:, None]
        made = (found * weight).sum(-1).view(batch, -1, count).transpose(1, 2)
        return self.out(made)


@pytest.mark.parametrize("way", ["bilinear", "nearest"])
def test_heads_of_deformable_attention_leave_with_their_points(way):
    groups, small = check(Deformable(way), IMAGE, {"value": HEADS})
    heads = groups[0]
    assert heads.members["offset.weight", 0].tolist() == [h for h in range(4) for _ in range(6)]
    assert heads.members["score.weight", 0].tolist() == [h for h in range(4) for _ in range(3)]
    assert small.heads == 2


def test_points_of_one_head_leave_offsets_and_scores_together():
    """A zeroed point would be read still."""
    model = Deformable("bilinear", heads=1)
    check(model, IMAGE, {"value": WIDTH, "offset": POINTS}, approximate=["offset"])


def sampled(m, x):
    """Layers use the channels that are read, and then the places."""
    places = m.b(x.mean((2, 3))).view(len(x), -1, 1, 2)
    found = F.grid_sample(m.a(x), places.tanh(), align_corners=False)
    return m.d(m.c(found.flatten(2).transpose(1, 2)).transpose(1, 2))


def test_image_read_at_computed_places_keeps_each_of_them():
    layers = {"a": nn.Conv2d(6, 4, 1), "b": nn.Linear(6, 10)}
    layers |= {"c": nn.Linear(4, 2), "d": nn.Linear(5, 2)}
    check(Net(sampled, **layers), IMAGE, {"a": 4, "b": 5})


def chosen(m, x):
    """Keep the rows of the three largest scores."""
    features = m.a(x)
    best = m.score(features).flatten(1).topk(3, 1).indices
    return m.c(features.gather(1, best[..., None].expand(-1, -1, features.shape[-1])))


def along(m, x):
    """The same by `take_along_dim`, whose index is broadcast."""
    features = m.a(x)
    best = m.score(features).topk(3, 1).indices
    return m.c(features.take_along_dim(best, 1))


def wide(m, x):
    """A layer for each copy of the index."""
    features = m.a(x)
    best = m.score(features).topk(3, 1).indices
    return m.c(features.gather(1, best.expand(-1, -1, 8)))


LAYERS = {"a": nn.Linear(6, 8), "score": nn.Linear(8, 1), "c": nn.Linear(8, 2)}


@pytest.mark.parametrize("run", [chosen, along])
def test_rows_chosen_by_scores_keep_their_channels(run):
    check(Net(run, **LAYERS), ROWS, {"a": 8})


def test_index_of_a_written_width_fails_when_it_is_tried():
    check(Net(wide, **LAYERS), ROWS, {"a": 8}, refused=["a"])


def narrow(m, x):
    """Only the first six of eight channels are gathered."""
    best = m.score(x).topk(3, 1).indices
    return m.c(m.a(x).gather(1, best.expand(-1, -1, 6)))


def across(m, x):
    """Data choose channels."""
    return m.c(m.a(x).gather(2, m.score(x).argsort(2)))


@pytest.mark.parametrize("run", [narrow, across])
def test_channels_that_an_index_counts_or_chooses_stay(run):
    layers = {"a": nn.Linear(6, 8), "score": nn.Linear(6, 1), "c": nn.Linear(6, 2)}
    if run is across:
        layers |= {"score": nn.Linear(6, 8), "c": nn.Linear(8, 2)}
    check(Net(run, **layers), ROWS, {})
