# SPDX-License-Identifier: MIT
import pytest

from regrow.app.experiment.result import budget, compare, verdict


def block(accuracy, params, macs, latency):
    times = {"median": latency, "p25": 0.9 * latency, "p75": 1.1 * latency}
    return {"accuracy": accuracy, "params": params, "macs": macs, "latency_ms": times}


def test_comparison_by_hand():
    found = compare(block(0.9, 1000, 500, 4.0), block(0.88, 100, 125, 2.0))
    assert found == {
        "accuracy_drop": pytest.approx(0.02),
        "compression": 10,
        "theoretical_speedup": 4,
        "measured_speedup": 2,
    }


@pytest.mark.parametrize(("latency", "said"), [(2.0, "2.00x as fast"), (3.9, "not faster")])
def test_verdict_says_faster_only_if_intervals_are_disjoint(latency, said):
    """The quartiles must not overlap: 4.0 +- 10 % against 3.9 +- 10 % is no difference."""
    dense, pruned = block(0.9, 1000, 500, 4.0), block(0.92, 100, 125, latency)
    result = {"dense": dense, "pruned": pruned, "sparsity": 0.9} | compare(dense, pruned)
    assert said in verdict(result)
    assert "2.00 points gained" in verdict(result)


def test_budget_is_read_from_the_history():
    history = [
        {"kind": "prune", "before": 0, "after": 0.5, "step": 8, "epoch": 1, "lost": -0.01},
        {"kind": "regrow", "before": 0.5, "after": 0.4, "step": 9, "epoch": 1},
        {"kind": "rollback", "before": 0.8, "after": 0.4, "step": 24, "epoch": 3, "lost": None},
        {"kind": "prune", "before": 0.4, "after": 0.6, "step": 24, "epoch": 3, "lost": 0.0}
        | {"reason": "why"},
    ]
    found = budget(history)
    assert [(e["sparsity"], e["kept"], e["lost"]) for e in found.pop("judged")] == [
        (0.5, True, -0.01),
        (0.8, False, None),
        (0.6, True, 0.0),
    ]
    assert found == {"kept": 0.6, "rollbacks": 1, "reason": "why"}
    assert budget(history[1:2]) is None
    dense, pruned = block(0.9, 1000, 500, 4.0), block(0.92, 100, 125, 2.0)
    result = {"dense": dense, "pruned": pruned, "sparsity": 0.6, "budget": budget(history)}
    assert verdict(result | compare(dense, pruned)).endswith(
        "2.00x as fast; budget: why (1 of 3 events rolled back)"
    )
