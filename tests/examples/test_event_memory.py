# SPDX-License-Identifier: MIT
"""Memory of an event: under two bytes a weight beside the working mask, whatever it ranks by."""

import importlib

import pytest

FEW = ["prune by taylor", "SET"]


@pytest.fixture
def memory(checkout, monkeypatch):
    monkeypatch.syspath_prepend(str(checkout / "benchmarks"))
    found = importlib.import_module("event_memory")
    for name, value in found.GIVEN_BACK.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.mark.slow
def test_memory_of_events_in_one_process(memory):
    found = memory.in_child(memory.alone, memory.sizes(3.2e7), FEW)
    assert all(0.5 < extra < 2 for extra in found.values()), found  # there are masks at least


@pytest.mark.slow
def test_memory_of_events_on_one_and_two_ranks(memory):
    names = list(memory.EVENTS)
    found = memory.in_child(memory.alone, memory.sizes(4e7), names)
    assert all(0.5 < extra < 2 for extra in found.values()), found
    found = memory.together(2, memory.sizes(8e7), names)
    assert all(0.5 < extra < 2 for extra in found.values()), found
