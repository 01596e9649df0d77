# SPDX-License-Identifier: MIT
"""Operations that move channels; each row lists the resulting groups."""

import pytest
import torch
from cut_oracle import Net, check
from torch import nn
from torch.nn import functional as F

IMAGE = torch.zeros(2, 3, 8, 8, dtype=torch.float64)


def conv(before, after, kernel=1, **more):
    return nn.Conv2d(before, after, kernel, **more)


def net(run, last=8, **layers):
    """A convolution `a` of eight channels, a last one `c`, and what else is needed."""
    last = {"c": conv(last, 2) if isinstance(last, int) else last}
    return Net(run, a=conv(3, 8), **layers, **last)


def shuffle(x, groups=2):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def windows(x, size=4):
    n, c, h, w = x.shape
    x = x.view(n, c, h // size, size, w // size, size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, size, size)


def halves(m, x):
    """Half of the channels goes through a layer, as in ShuffleNet."""
    kept, changed = m.a(x).chunk(2, 1)
    return m.c(torch.cat([kept, m.d(changed)], 1))


def thirds(m, x):
    """Res2Net: pieces of a width that is an attribute."""
    one, two, three = m.a(x).split(m.width, 1)
    two = m.d(two + one)
    return m.c(torch.cat([one, two, m.e(three + two)], 1))


def pyramid(m, x):
    y = m.a(x)
    return m.c(torch.cat([F.adaptive_avg_pool2d(y, k).flatten(1) for k in (1, 2)], 1))


def token(m, x):
    rows = m.a(x).flatten(2).mT
    return m.c((torch.cat([m.first.expand(len(x), -1, -1), rows], 1) + m.places)[:, 0])


def twice(function):
    """A function of `a`'s output, which it may use more than once."""
    return lambda m, x: m.c(function(m.a(x)))


def on(function, last=8):
    return net(twice(function), last)


def with_width(model, width):
    model.width = width
    return model


A, A4 = {"a": 8}, {"a": 4}
BOTH = {"a": 8, "b": 8}
NETWORKS = [
    ("cat", net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), 16, b=conv(3, 8)), BOTH),
    ("cat with the input", net(lambda m, x: m.c(torch.cat([x, m.a(x)], 1)), 11), A),
    ("cat of one tensor", on(lambda y: torch.cat([y, y.relu(), y], 1), 24), A),
    ("cat of rows", net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 2)), b=conv(3, 8)), A),
    ("stack", net(lambda m, x: m.c(torch.stack([m.a(x), m.b(x)]).sum(0)), b=conv(3, 8)), A),
    ("chunk", on(lambda y: sum(y.chunk(2, 1)), 4), A4),
    ("chunk, changed, cat", net(halves, d=conv(4, 4)), {"a": 4, "d": 4}),
    ("slices", on(lambda y: y[:, : y.shape[1] // 2] * y[:, y.shape[1] // 2 :], 4), A4),
    ("unbind", on(lambda y: sum(y.unflatten(1, (2, -1)).unbind(1)), 4), A4),
    ("select", on(lambda y: y.unflatten(1, (2, -1))[:, 1], 4), A4),
    ("shuffle by views", on(shuffle), A4),
    ("shuffle", on(lambda y: F.channel_shuffle(y, 2)), A4),
    (
        "shuffle of groups",
        net(lambda m, x: m.c(shuffle(m.d(m.a(x)))), d=conv(8, 8, groups=2)),
        {"a": 4, "d": 4},
    ),
    ("roll", on(lambda y: y + y.roll(y.shape[1] // 2, 1)), A4),
    ("roll of rows", on(lambda y: y.roll((1, 2), (2, 3))), A),
    ("flip", on(lambda y: y + y.flip(1)), A4),
    ("flip of rows", on(lambda y: y.flip(2, 3)), A),
    ("pad", on(lambda y: F.pad(y, (1, 2, -1, 0))), A),
    ("pad channels", on(lambda y: F.pad(y, (0, 0, 0, 0, 2, 1)), 11), A),
    ("pad by reflection", on(lambda y: F.pad(y, (1, 2, 1, 0), mode="reflect")), A),
    ("pad by repetition", on(lambda y: F.pad(y, (1, 2, 1, 0), mode="replicate")), A),
    (
        "padded shortcut",  # what meets zeros of a fixed place stays
        net(lambda m, x: m.c(m.a(x) + F.pad(m.d(x), (0, 0, 0, 0, 0, 4))), d=conv(3, 4)),
        A4,
    ),
    ("pixel shuffle", on(lambda y: F.pixel_shuffle(y, 2), 2), {"a": 2}),
    ("pixel unshuffle", on(lambda y: F.pixel_unshuffle(y, 2), 32), A),
    ("columns", on(lambda y: F.unfold(y, 3).mT, nn.Linear(72, 2)), A),
    ("sliding windows", on(lambda y: y.unfold(2, 3, 1).mean(-1)), A),
    ("windows", on(windows), A),
    ("channels last", on(lambda y: y.permute(0, 2, 3, 1), nn.Linear(8, 2)), A),
    ("flatten", on(lambda y: y.flatten(1), nn.Linear(512, 2)), A),
    ("flatten, last", on(lambda y: y.permute(0, 2, 3, 1).flatten(1), nn.Linear(512, 2)), A),
    ("pyramid", net(pyramid, nn.Linear(40, 2)), A),
    ("repeat", on(lambda y: y.repeat(1, 2, 1, 1), 16), A),
    ("repeat each", on(lambda y: y.repeat_interleave(2, 1), 16), A),
    ("expand", on(lambda y: y.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4)), A),
    ("expand as", on(lambda y: y.mean((2, 3), keepdim=True).expand_as(y)), A),
    ("mean of rows", on(lambda y: y.mean((-2, -1)), nn.Linear(8, 2)), A),
    ("largest of rows", on(lambda y: y.flatten(2).max(-1)[0], nn.Linear(8, 2)), A),
    ("where", net(lambda m, x: m.c(torch.where(m.a(x) > 0, m.a(x), m.b(x))), b=conv(3, 8)), A),
    (
        "sum of softmax-weighted branches",  # ResNeSt: what runs over branches cuts no branch
        on(lambda y: (y.unflatten(1, (2, -1)).softmax(1) * y.unflatten(1, (2, -1))).sum(1), 4),
        A4,
    ),
    ("squeeze", on(lambda y: y[:, None].squeeze(1).movedim(1, -1), nn.Linear(8, 2)), A),
    (
        "class token, positions",
        net(token, nn.Linear(8, 3), first=torch.zeros(1, 1, 8), places=torch.zeros(1, 65, 8)),
        A,
    ),
]


@pytest.mark.parametrize(
    ("model", "sizes"), [case[1:] for case in NETWORKS], ids=[case[0] for case in NETWORKS]
)
def test_reshaped_permuted_and_joined_channels_are_cut_correctly(model, sizes):
    check(model, IMAGE, sizes)


def test_split_by_a_width_attribute_is_cut_and_the_attribute_updated():
    model = with_width(Net(thirds, a=conv(3, 12), c=conv(12, 2), d=conv(4, 4), e=conv(4, 4)), 4)
    _, cut = check(model, IMAGE, {"a": 4, "e": 4})
    assert cut.width == 2


def test_members_of_a_gated_group_by_hand():
    """`a`'s second half gates its first: channel i is row i and row i + 4, and column i of `c`."""
    groups, _ = check(on(lambda y: y[:, : len(y[0]) // 2] * y[:, len(y[0]) // 2 :], 4), IMAGE, A4)
    assert {place: channels.tolist() for place, channels in groups[0].members.items()} == {
        ("a.weight", 0): [0, 1, 2, 3, 0, 1, 2, 3],
        ("a.bias", 0): [0, 1, 2, 3, 0, 1, 2, 3],
        ("c.weight", 1): [0, 1, 2, 3],
    }


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        (lambda y: y[:, [7, 6, 5, 4, 3, 2, 1, 0]], A),
        (lambda y: y.view(len(y), 2, 4, 8, 8).sum(1).repeat(1, 2, 1, 1), A4),
        (lambda y: torch.cat(y.split([2, 6], 1), 1), A),
        (lambda y: y * torch.arange(8.0, dtype=y.dtype).reshape(1, 8, 1, 1), {}),
        (lambda y: y + torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])[:, None, None], {}),
    ],
    ids=["index", "view", "split", "counted", "constant"],
)
def test_sizes_written_in_the_code_prevent_a_cut(function, sizes):
    """A cut is tried and fails, or is excluded from the start."""
    _, model = check(on(function), IMAGE, sizes, refused={*sizes})
    assert (model.a.out_channels, model.c.in_channels) == (8, 8)
