# SPDX-License-Identifier: MIT
"""Claim: at 98 % sparsity how a network is pruned decides what it still knows.

LeNet-300-100 on Fashion-MNIST, equal total epochs, several seeds: gradual beats one-shot with
fine-tuning, one-shot without retraining collapses, magnitude beats random. Runs the recipes as a
sweep (finished jobs are not run again) and prints mean and spread.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from _bench import arguments
from rich.console import Console
from rich.table import Table

METHODS = ("gmp", "iterative", "oneshot_finetune", "random", "oneshot")
PREFIX = "fashion_mnist/lenet300_"


def sweep(seeds: list[str], folder: Path) -> None:
    """Trains what is not there yet."""
    recipes = ",".join(PREFIX + method for method in METHODS)
    words = [
        "train",
        "-m",
        f"recipe={recipes}",
        f"seed={','.join(seeds)}",
        f"hydra.sweep.dir={folder}",
    ]
    words += [
        f"paths.controls={folder / 'controls'}",
        "hydra.job.config.override_dirname.exclude_keys=[recipe,seed,paths.controls]",
    ]
    subprocess.run([sys.executable, "-m", "regrow.app.cli", *words], check=True)


def row(results: list[dict], method: str) -> dict:
    """Mean and standard deviation over seeds, in percent."""
    mine = [r for r in results if r["recipe"] == PREFIX + method]
    accuracies = [100 * r["pruned"]["accuracy"] for r in mine]
    dense = [100 * r["dense"]["accuracy"] for r in mine]
    drops = [d - a for d, a in zip(dense, accuracies, strict=True)]
    return {
        "method": method,
        "seeds": len(mine),
        "epochs": mine[0]["epochs"],
        "sparsity": statistics.mean(r["sparsity"] for r in mine),
        "compression": statistics.mean(r["compression"] for r in mine),
        "macs_ratio": statistics.mean(r["theoretical_speedup"] for r in mine),
        "accuracy": statistics.mean(accuracies),
        "std": statistics.stdev(accuracies) if len(mine) > 1 else 0.0,
        "dense_accuracy": statistics.mean(dense),
        "drop": statistics.mean(drops),
    }


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folder", type=Path, default=Path("outputs/methods_at_98"))
    given = parser.parse_args()
    seeds = given.seeds.split(",")
    sweep(seeds, given.folder.absolute())
    files = sorted((given.folder / "fashion_mnist").rglob("result.json"))
    results = [
        r for r in map(json.loads, (f.read_text() for f in files)) if str(r["seed"]) in seeds
    ]
    rows = [row(results, method) for method in METHODS]
    title = f"LeNet-300-100, Fashion-MNIST, 98 % sparsity, {len(seeds)} seeds, test accuracy in %"
    table = Table("method", "accuracy", "dense", "points lost", "compression", title=title)
    for r in rows:
        cells = (f"{r['accuracy']:.2f} ± {r['std']:.2f}", f"{r['dense_accuracy']:.2f}")
        table.add_row(r["method"], *cells, f"{r['drop']:.2f}", f"{r['compression']:.1f}x")
    Console().print(table)
    given.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
