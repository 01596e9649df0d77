# SPDX-License-Identifier: MIT
"""Argument checks and their messages."""

import math

import numpy as np
import pytest
import torch

from regrow.utils.errors import (
    ConfigError,
    RegrowError,
    StateError,
    check_choice,
    check_count,
    check_patterns,
    check_rate,
    check_sparsity,
    closest_names,
    join_limited,
    suggest,
)


def test_errors_derive_from_builtin_errors():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(StateError, RuntimeError)
    assert issubclass(ConfigError, RegrowError)
    assert issubclass(StateError, RegrowError)


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 0.999, np.float32(0.25), np.float64(0.9)])
def test_valid_sparsities_are_taken(value):
    assert check_sparsity("sparsity", value) == float(value)
    assert type(check_sparsity("sparsity", value)) is float


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (90, r"sparsity must be in \[0, 1\), got 90: write 0.9 for 90 %"),
        (99.5, r"write 0.995 for 99.5 %"),
        (1, r"must be in \[0, 1\), got 1:"),
        (1.0, r"must be in \[0, 1\), got 1.0:"),
        (-0.1, r"must be in \[0, 1\), got -0.1:"),
        (math.nan, r"must be in \[0, 1\), got nan:"),
        (math.inf, r"must be in \[0, 1\), got inf:"),
        ("0.9", r"sparsity is the text '0.9', not a number: write 0.9"),
        (None, "must be a number"),
        (True, "must be a number"),
        (torch.tensor(0.5), "must be a number"),
    ],
)
def test_invalid_sparsities_raise(given, message):
    with pytest.raises(ConfigError, match=message):
        check_sparsity("sparsity", given)


def test_zero_raises_where_it_is_not_allowed():
    with pytest.raises(ConfigError, match="above 0"):
        check_sparsity("sparsity", 0, zero=False)
    with pytest.raises(ConfigError, match=r"rate must be in \(0, 1\), got 0: write 0.2"):
        check_rate("rate", 0)
    assert check_rate("rate", 0.2) == 0.2


@pytest.mark.parametrize("given", [0, -1, 1.5, "three", True, None])
def test_invalid_counts_raise(given):
    with pytest.raises(ConfigError, match="rounds must be a whole number of at least 1"):
        check_count("rounds", given)


def test_valid_counts_are_taken():
    assert check_count("rounds", np.int64(3)) == 3
    assert check_count("event", 0, least=0) == 0


def test_choices_name_the_nearest():
    assert check_choice("schedule", "cubic", ["linear", "cubic"]) == "cubic"
    with pytest.raises(ConfigError, match=r"one of cubic, linear, got 'cubik': did you mean 'cub"):
        check_choice("schedule", "cubik", ["linear", "cubic"])
    with pytest.raises(ConfigError, match="there are: cubic, linear"):
        check_choice("schedule", 7, ["linear", "cubic"])
    assert closest_names("fc1", ["fc", "conv", "fc2"])[0] in ("fc", "fc2")
    assert suggest("xyz", ["fc"]) == "there are: fc"


@pytest.mark.parametrize(
    ("given", "patterns"),
    [(None, None), ("fc", ("fc",)), (["a", "b"], ("a", "b")), (("a",), ("a",))],
)
def test_valid_patterns_are_taken(given, patterns):
    assert check_patterns("include", given) == patterns


@pytest.mark.parametrize("given", [[], [3], 3, [None]])
def test_invalid_patterns_raise(given):
    with pytest.raises(ConfigError, match="include must be layer patterns such as"):
        check_patterns("include", given)


def test_long_lists_say_how_many_items_are_left_out():
    assert join_limited(["a", "b"], limit=2) == "a, b"
    assert join_limited(["a", "b", "c"], limit=2) == "a, b and 1 more"
    assert join_limited("abcde", separator="; ") == "a; b; c and 2 more"
