# SPDX-License-Identifier: MIT
"""Claim: one command compares pruning methods fairly, and one page shows the result.

`regrow train -m sweep=methods` (six methods at two sparsities and three seeds on Fashion-MNIST) or,
with `--preset compare`, every method of the suite at three; two jobs at once (joblib). Finished
jobs are skipped, so a stopped run continues. A screenshot of the first report, by headless
Chromium, is docs/sweep.png; the second report is the source of the table in docs/compare.md and of
docs/compare.svg (matplotlib). The numbers are saved next to them as csv files.
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
from _compare_plot import draw

DOCS = Path(__file__).parent.parent / "docs"
WORDS = {
    "methods": ("sweep=methods", "pruning.sparsity=0.95,0.98"),
    "compare": ("sweep=compare",),
}
MARK = "<!-- python benchmarks/sweep.py --preset compare -->"
FILES = {"methods": "sweep", "compare": "compare"}
BROWSER = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--window-size=1180,900", "--virtual-time-budget=8000",
)  # fmt: skip


def sweep(folder: Path, preset: str) -> Path:
    """Runs what is missing; returns the folder of the report."""
    words = ("-m", *WORDS[preset], "hydra/launcher=joblib")
    quiet = ("hydra.launcher.n_jobs=2", "~callbacks.progress", "+trainer.enable_progress_bar=false")
    command = [sys.executable, "-m", "regrow", "train", *words, *quiet]
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


def beside(table: list[dict[str, str]]) -> list[str]:
    """One Markdown row a recipe, one column a sparsity; the best at the highest one first."""
    sparsities = sorted({row["sparsity"] for row in table}, key=float)
    cells: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in table:
        cells[row["recipe"].rpartition("/")[2]][row["sparsity"]] = row
    lines = ["| recipe | dense | " + " | ".join(f"{float(s):.0%}" for s in sparsities) + " |"]
    lines.append("|---" * (len(sparsities) + 2) + "|")

    def last(name: str) -> float:
        return -float(cells[name].get(sparsities[-1], {"accuracy %": "0"})["accuracy %"])

    for name in sorted(cells, key=last):
        found = [cells[name].get(sparsity) for sparsity in sparsities]
        shown = [f"{row['accuracy %']} ± {row['sd'] or '?'}" if row else "" for row in found]
        dense = next(row["dense %"] for row in found if row)
        lines.append(f"| `{name}` | {dense} | " + " | ".join(shown) + " |")
    return lines


def insert(document: Path, lines: list[str]) -> None:
    """Replace the table between the two markers of a document."""
    head, _, rest = document.read_text().partition(MARK)
    _, _, tail = rest.partition(MARK)
    document.write_text("\n".join([f"{head}{MARK}", *lines, f"{MARK}{tail}"]))


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
    parser.add_argument("--preset", choices=WORDS, default="methods")
    parser.add_argument("--folder", type=Path, help="outputs/sweep_PRESET")
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args()
    folder = options.folder or Path(f"outputs/sweep_{options.preset}")
    folder.mkdir(parents=True, exist_ok=True)
    found = sweep(folder.absolute(), options.preset)
    name = FILES[options.preset]
    table = means(found / "results.csv")
    with (options.docs / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    if options.preset == "compare":
        insert(options.docs / "compare.md", beside(table))
        draw(options.docs / "compare.csv", options.docs / "compare.svg")
    else:
        picture(found / "report.html", options.docs / f"{name}.png")
    for row in table:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    main()
