# SPDX-License-Identifier: MIT
"""Claim: six pruning methods compared fairly are one command, and one page says which to take.

`regrow train -m sweep=methods` at two sparsities and three seeds on Fashion-MNIST, two jobs at once
(joblib); finished jobs are skipped, so a stopped run goes on. Its report is pictured by headless
Chromium into docs/sweep.png, and what the plot shows is written beside it, into docs/sweep.csv.
"""

from __future__ import annotations

import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from _bench import arguments

DOCS = Path(__file__).parent.parent / "docs"
WORDS = ("-m", "sweep=methods", "pruning.sparsity=0.95,0.98", "hydra/launcher=joblib")
BROWSER = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--window-size=1180,900", "--virtual-time-budget=8000",
)  # fmt: skip


def sweep(folder: Path) -> Path:
    """Runs what is missing; returns the folder of the report."""
    quiet = ("hydra.launcher.n_jobs=2", "~callbacks.progress", "+trainer.enable_progress_bar=false")
    command = [sys.executable, "-m", "regrow.app.cli", "train", *WORDS, *quiet]
    subprocess.run(command, cwd=folder, check=True)
    [found] = (folder / "outputs" / "sweeps").iterdir()
    return found


def means(results: Path) -> list[dict[str, str]]:
    """Recipe and sparsity -> mean and standard deviation over seeds, in %."""
    rows = [row for row in csv.DictReader(results.open()) if row["final"] == "yes"]
    found: dict[tuple[str, float], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        found[row["recipe"], round(float(row["sparsity"]), 3)].append(row)
    table = []
    for (recipe, sparsity), group in sorted(found.items()):
        accuracies = [100 * float(row["accuracy"]) for row in group]
        dense = [100 * float(row["dense_accuracy"]) for row in group]
        table.append(
            {
                "recipe": recipe,
                "sparsity": f"{sparsity:g}",
                "seeds": str(len(group)),
                "accuracy %": f"{statistics.mean(accuracies):.2f}",
                "sd": f"{statistics.stdev(accuracies):.2f}" if len(group) > 1 else "",
                "dense %": f"{statistics.mean(dense):.2f}",
                "compression": f"{statistics.mean(float(r['compression']) for r in group):.1f}",
            }
        )
    return table


def picture(page: Path, file: Path) -> None:
    """The page's first screen; a message where there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(f"no Chromium here: {file} is not made")
        return
    with tempfile.TemporaryDirectory() as profile:
        options = (*BROWSER, f"--user-data-dir={profile}", f"--screenshot={file}")
        subprocess.run([browser, *options, page.as_uri()], check=True, capture_output=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/sweep_benchmark"))
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found = sweep(options.folder.absolute())
    table = means(found / "results.csv")
    with (options.docs / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    picture(found / "report.html", options.docs / "sweep.png")
    for row in table:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    main()
