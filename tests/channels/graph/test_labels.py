# SPDX-License-Identifier: MIT
"""Union-find over labels, against a plain one in Python."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.channels.graph.labels import FIXED, LabelledTensor, Labels, make_axis, varying_dims


class Plain:
    """Classes as sets."""

    def __init__(self, count):
        self.of = {i: {i} for i in range(1, count + 1)}

    def unite(self, one, other):
        both = self.of[one] | self.of[other]
        for label in both:
            self.of[label] = both


PAIRS = st.lists(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1), max_size=6
)


@given(PAIRS)
def test_classes_equal_those_of_a_plain_union_find(calls):
    labels, plain = Labels(), Plain(30)
    labels.new("a", 0, 30)
    for pairs in calls:
        one, other = torch.tensor(pairs).unbind(1)
        labels.unite(one, other, "test")
        for pair in pairs:
            plain.unite(*pair)
        every = torch.arange(1, 31)
        assert labels.find(every).tolist() == [min(plain.of[i]) for i in range(1, 31)]
    assert labels.find(torch.tensor([FIXED])).tolist() == [FIXED]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_new_labels_are_consecutive(counts):
    labels = Labels()
    made = [labels.new(str(i), i, count) for i, count in enumerate(counts)]
    assert torch.cat(made).tolist() == [*range(1, sum(counts) + 1)]
    assert len(labels) == sum(counts) + 1
    assert labels.starts == [int(m[0]) for m in made]
    assert labels.owners == [(str(i), i) for i in range(len(counts))]
    assert torch.equal(labels.find(torch.cat(made)), torch.cat(made))


def test_labels_united_with_a_fixed_place_are_fixed():
    labels = Labels()
    made = labels.new("a", 0, 4)
    labels.unite(made, torch.tensor([FIXED, FIXED, int(made[3]), int(made[3])]), "padding")
    ((fixed, reason),) = labels.fixed
    assert (fixed.tolist(), reason) == ([1, 2], "padding")
    assert labels.find(made).tolist() == [1, 2, 3, 3]


def test_varying_dims_follow_united_labels():
    labels = Labels()
    rows, columns = labels.new("a", 0, 3), labels.new("a", 1, 2)
    value = labels.value((3, 2), [make_axis(rows, 0, 2), make_axis(columns, 1, 2)])
    assert [varying_dims(axis) for axis in value.label_axes] == [[0], [1]]
    labels.unite(rows, rows[:1], "all rows are one")
    assert [varying_dims(axis) for axis in labels.relabel(value).label_axes] == [[1]]
    assert not labels.relabel(value).varies(0)
    assert value.varies(1)


def test_unite_except_keeps_one_dimension_apart():
    labels = Labels()
    axis = labels.new("a", 0, 6).reshape(2, 3)
    assert labels.unite_except(axis, 1, "heads").tolist() == [[1, 2, 3]]
    assert labels.find(axis).tolist() == [[1, 2, 3], [1, 2, 3]]


def test_adding_a_tensor_of_fixed_length_fixes_labels():
    labels = Labels()
    value = labels.value((2, 3), [make_axis(labels.new("a", 0, 3), 1, 2)])
    for other, is_fixed in (
        (LabelledTensor((2, 3)), True),
        (LabelledTensor((2, 1)), False),
        (LabelledTensor((3,)), True),
    ):
        labels.fixed.clear()
        labels.broadcast([value, other], (2, 3), "add")
        assert bool(labels.fixed) is is_fixed
    labels.fixed.clear()
    labels.broadcast([value, LabelledTensor((2, 3), resizable=True)], (2, 3), "add")
    assert not labels.fixed, "zeros_like fits whatever is cut"


def axes(labels, *values):
    """The axes of the result as lists, and the labels that cannot be cut."""
    shape = torch.broadcast_shapes(*(value.shape for value in values))
    result = labels.broadcast(values, shape, "multiply")
    found = [labels.find(axis).squeeze().tolist() for axis in result.label_axes]
    return found, [label for fixed, _ in labels.fixed for label in fixed.tolist()]


def test_outer_dimensions_remain_beside_a_value_with_the_inner_ones():
    """Two heads of three places times angles of three: whole heads can be cut."""
    for order in (1, -1):
        labels = Labels()
        heads = labels.value((2, 3), [labels.new("q", 0, 6).reshape(2, 3)])
        angles = labels.value((3,), [labels.new("angles", 0, 3)])
        assert axes(labels, *(heads, angles)[::order]) == ([[1, 4]], [7, 8, 9])


def test_outer_dimensions_are_united_with_a_value_that_has_them():
    labels = Labels()
    heads = labels.value((2, 3), [labels.new("q", 0, 6).reshape(2, 3)])
    scale = labels.value((2, 1), [labels.new("scale", 0, 2)[:, None]])
    found, fixed = axes(labels, heads, scale)
    assert (found, fixed) == ([[1, 4]], [])
    assert labels.find(torch.arange(1, 9)).tolist() == [1, 1, 1, 4, 4, 4, 1, 4]


def test_only_dimensions_of_fixed_length_cannot_be_cut():
    for shape, expected in (((3,), [1, 4]), ((2, 1), [1, 2, 3])):
        labels = Labels()
        value = labels.value((2, 3), [labels.new("q", 0, 6).reshape(2, 3)])
        assert axes(labels, value, LabelledTensor(shape)) == ([expected], [])
    labels = Labels()
    value = labels.value((2, 3), [labels.new("q", 0, 6).reshape(2, 3)])
    assert axes(labels, value, LabelledTensor((2, 3)))[1] == [1, 2, 3, 4, 5, 6]


def test_copies_of_one_position_fit_any_cut():
    """A mask by batch and place plus zeros by head: the heads may be cut."""
    labels = Labels()
    mask, zeros = LabelledTensor((2, 1, 5)), LabelledTensor((1, 4, 5), resizable=True)
    value = labels.broadcast([zeros, mask], (2, 4, 5), "add")
    assert [varying_dims(axis) for axis in value.label_axes] == [[1]]
    heads = labels.value((2, 4, 5), [make_axis(labels.new("q", 0, 4), 1, 3)])
    labels.broadcast([value, heads], (2, 4, 5), "add")
    assert not labels.fixed
    assert labels.owners == [("", 1), ("q", 0)]
