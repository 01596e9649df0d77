# SPDX-License-Identifier: MIT
import pytest

from regrow.app.result import compare, verdict


def block(accuracy, params, macs, latency):
    times = {"median": latency, "p25": 0.9 * latency, "p75": 1.1 * latency}
    return {"accuracy": accuracy, "params": params, "macs": macs, "latency_ms": times}


def test_compare_by_hand():
    found = compare(block(0.9, 1000, 500, 4.0), block(0.88, 100, 125, 2.0))
    assert found == {
        "accuracy_drop": pytest.approx(0.02),
        "compression": 10,
        "theoretical_speedup": 4,
        "measured_speedup": 2,
    }


@pytest.mark.parametrize(("latency", "said"), [(2.0, "2.00x as fast"), (3.9, "not faster")])
def test_verdict_calls_faster_only_what_lies_apart(latency, said):
    """The quartiles must not overlap: 4.0 +- 10 % against 3.9 +- 10 % is no difference."""
    dense, pruned = block(0.9, 1000, 500, 4.0), block(0.92, 100, 125, latency)
    result = {"dense": dense, "pruned": pruned, "sparsity": 0.9} | compare(dense, pruned)
    assert said in verdict(result)
    assert "2.00 points gained" in verdict(result)
