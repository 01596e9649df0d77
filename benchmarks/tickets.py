# SPDX-License-Identifier: MIT
"""Claims: rewinding beats fine-tuning, a winning ticket its controls, and RigL fixed masks.

LeNet-300-100 on Fashion-MNIST, several seeds, test accuracy; within a group all have equal total
epochs. Runs the recipes as a sweep (finished jobs are not run again). One-shot pruning is listed
with three fine-tuning schedules, because the advantage of rewinding depends on the schedule.
"""

import json

from _bench import Row, accuracies, spread, sweep, sweep_arguments
from rich.console import Console
from rich.table import Table

METHODS = {
    "98 % sparsity, 16 epochs": (
        "lr_rewind",
        "imp",
        "weights_only",
        "oneshot_last_rate",
        "oneshot_finetune",
        "oneshot_constant",
        "rigl",
        "set",
        "static",
    ),
    "84 % sparsity, 6 epochs": ("imp_init", "reinit_control", "random_ticket"),
}
# the better one, the worse one, and by more than how many points
CLAIMS = (
    ("lr_rewind", "oneshot_last_rate", 2.0),
    ("lr_rewind", "oneshot_finetune", 2.0),
    ("lr_rewind", "oneshot_constant", 2.0),
    ("imp", "oneshot_last_rate", 2.0),
    ("imp", "weights_only", 1.0),
    ("imp_init", "reinit_control", 1.0),
    ("imp_init", "random_ticket", 1.0),
    ("rigl", "static", 0.0),
)


def row(group: str, method: str, results: list[Row]) -> Row:
    """Mean and standard deviation over seeds, in percent."""
    mean, std = spread(accuracies(results))
    dense, _ = spread(accuracies(results, "dense"))
    return {
        "group": group,
        "method": method,
        "seeds": len(results),
        "epochs": results[0]["epochs"],
        "sparsity": spread([r["sparsity"] for r in results])[0],
        "accuracy": mean,
        "std": std,
        "dense_accuracy": dense,
    }


def claim(better: str, worse: str, least: float, found: dict[str, list[Row]]) -> Row:
    """Difference of two methods in points, seed by seed."""
    pairs = zip(accuracies(found[better]), accuracies(found[worse]), strict=True)
    mean, std = spread([one - other for one, other in pairs])
    names = {"better": better, "worse": worse}
    return names | {"points": mean, "std": std, "more_than": least, "holds": mean > least}


def main() -> None:
    given = sweep_arguments(__doc__ or "").parse_args()
    seeds = given.seeds.split(",")
    found = sweep([m for group in METHODS.values() for m in group], seeds, given.folder)
    rows = [row(g, method, found[method]) for g, group in METHODS.items() for method in group]
    claims = [claim(*words, found) for words in CLAIMS]
    title = f"LeNet-300-100, Fashion-MNIST, {len(seeds)} seeds, test accuracy in %"
    table = Table("method", "accuracy", "dense", "sparsity", "epochs", title=title)
    for r in rows:
        cells = (f"{r['accuracy']:.2f} ± {r['std']:.2f}", f"{r['dense_accuracy']:.2f}")
        table.add_row(r["method"], *cells, f"{100 * r['sparsity']:.1f} %", str(r["epochs"]))
    verdicts = Table("against", "points", "claimed", "verdict", title="points ahead, seed by seed")
    for c in claims:
        points = f"{c['points']:+.2f} ± {c['std']:.2f}"
        verdict = "holds" if c["holds"] else "DOES NOT HOLD"
        verdicts.add_row(f"{c['better']} - {c['worse']}", points, f"> {c['more_than']:g}", verdict)
    Console().print(table, verdicts)
    given.out.write_text(json.dumps({"rows": rows, "claims": claims}, indent=2) + "\n")


if __name__ == "__main__":
    main()
