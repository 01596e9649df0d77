# SPDX-License-Identifier: MIT
"""The results of every case equal those recorded in golden.json."""

import copy

import pytest
import torch
from golden_cases import CASES, compute
from golden_digests import DIGESTS, describe, differences, machine, masks
from record import read

import regrow

RECORDED = read()
EXACT = machine() == RECORDED["machine"]


def test_every_case_is_recorded():
    assert RECORDED["cases"].keys() == CASES.keys()


@pytest.mark.parametrize("name", sorted(CASES))
def test_results_equal_the_recorded_ones(name):
    """Exactly on the machine of the record; elsewhere by counts, events and sums."""
    assert not differences(RECORDED["cases"][name], compute(name), EXACT)


@pytest.mark.parametrize("exact", [True, False])
def test_changed_count_event_or_sum_is_reported(exact):
    old = RECORDED["cases"]["magnitude/global"]
    assert not differences(old, copy.deepcopy(old), exact)
    for key, value in (
        ("pruned", old["pruned"] + 1),
        ("events", old["events"][1:]),
        ("events", [[step + 1, after] for step, after in old["events"]]),
        ("sum", old["sum"] + 0.01 * old["abs_sum"]),
        ("abs_sum", 1.01 * old["abs_sum"]),
    ):
        [line] = differences(old, {**old, key: value}, exact)
        assert line.startswith(f"{key}: ")


@pytest.mark.parametrize("key", DIGESTS)
def test_changed_digest_is_reported(key):
    old = RECORDED["cases"]["magnitude/global"]
    changed = {**old, key: "0"}
    assert len(differences(old, changed, True)) == 1
    assert not differences(old, changed, False)


class Flipped:
    """A pruner that differs from another one in one mask bit."""

    def __init__(self, pruner):
        self.history = pruner.history
        self.masks = {name: mask.clone() for name, mask in pruner.masks.items()}
        mask = self.masks["weight"].view(-1)
        mask[5] = ~mask[5]


def test_one_bit_changes_the_digest():
    torch.manual_seed(0)
    net = torch.nn.Linear(8, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    pruner = regrow.Pruner(net)
    pruner.prune_to(0.5, [optimizer])
    net(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    before = describe(net, [pruner], [optimizer])
    assert before == describe(net, [pruner], [optimizer])
    flipped = describe(net, [Flipped(pruner)], [optimizer])
    assert {k for k in before if before[k] != flipped[k]} == {"masks", "pruned"}
    assert masks([pruner.masks]) == before["masks"]

    bits = net.bias.detach().view(torch.int32)
    bits[0] ^= 1  # the last bit of one number
    changed = describe(net, [pruner], [optimizer])
    assert {"weights"} <= {k for k in before if before[k] != changed[k]} <= {
        "weights", "sum", "abs_sum"
    }  # fmt: skip
    bits[0] ^= 1
    optimizer.state[net.weight]["momentum_buffer"].view(torch.int32)[0, 0] ^= 1
    changed = describe(net, [pruner], [optimizer])
    assert {k for k in before if before[k] != changed[k]} == {"moments"}
    pruner.history[0]["note"] = "x"
    assert describe(net, [pruner], [optimizer])["history"] != before["history"]
