# SPDX-License-Identifier: MIT
"""Claim: at 98 % sparsity the accuracy depends strongly on the method.

LeNet-300-100 on Fashion-MNIST, equal total epochs, several seeds: gradual beats one-shot with
fine-tuning, one-shot without retraining collapses, magnitude beats random. Runs the recipes as a
sweep (finished jobs are not run again) and prints mean and spread.
"""

import json
import statistics

from _bench import Row, accuracies, spread, sweep, sweep_arguments
from rich.console import Console
from rich.table import Table

METHODS = ("gmp", "iterative", "oneshot_finetune", "random", "oneshot")


def row(method: str, results: list[Row]) -> Row:
    """Mean and standard deviation over seeds, in percent."""
    mean, std = spread(accuracies(results))
    dense, _ = spread(accuracies(results, "dense"))
    return {
        "method": method,
        "seeds": len(results),
        "epochs": results[0]["epochs"],
        "sparsity": statistics.mean(r["sparsity"] for r in results),
        "compression": statistics.mean(r["compression"] for r in results),
        "macs_ratio": statistics.mean(r["theoretical_speedup"] for r in results),
        "accuracy": mean,
        "std": std,
        "dense_accuracy": dense,
        "drop": dense - mean,
    }


def main() -> None:
    given = sweep_arguments(__doc__ or "").parse_args()
    seeds = given.seeds.split(",")
    found = sweep(METHODS, seeds, given.folder)
    rows = [row(method, found[method]) for method in METHODS]
    title = f"LeNet-300-100, Fashion-MNIST, 98 % sparsity, {len(seeds)} seeds, test accuracy in %"
    table = Table("method", "accuracy", "dense", "points lost", "compression", title=title)
    for r in rows:
        cells = (f"{r['accuracy']:.2f} ± {r['std']:.2f}", f"{r['dense_accuracy']:.2f}")
        table.add_row(r["method"], *cells, f"{r['drop']:.2f}", f"{r['compression']:.1f}x")
    Console().print(table)
    given.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
