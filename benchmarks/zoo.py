# SPDX-License-Identifier: MIT
"""Claim: channel pruning works on more than 100 architectures and leaves none partly cut.

Each of `_zoo_models.py` loses 30 % and 50 % of its MACs, and so do the detectors, transformers,
segmentation and recurrent networks of `_zoo_deployed.py`, in a process of its own with a limit of
CPU time, and so does Torch-Pruning on the same model in the same run. Results are appended to a
file as they come: a stopped run continues where it stopped; `--again NAME` repeats one.
"""

from __future__ import annotations

import json
import signal
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _zoo_one
from _bench import arguments
from _vision import needed
from _zoo_models import MODELS
from _zoo_table import table

from regrow.utils.progress_bar import progress_bar

Row = dict[str, Any]
HERE = Path(__file__).parent
LIMITS = {"ours": 120, "peer": 45}  # seconds of CPU time
FORKS = get_context("forkserver")  # a child starts with everything imported
FORKS.set_forkserver_preload(["_zoo_one", "_zoo_warm"])
SLOWER = 6  # wall time allowed, as a multiple of CPU time: the machine may be shared


def key(row: Row) -> tuple[str, str, str]:
    return row["side"], row["source"], row["name"]


def read(path: Path) -> dict[tuple[str, str, str], Row]:
    """The last result of each; an unfinished last line is left out."""
    found: dict[tuple[str, str, str], Row] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[key(row)] = row
    return found


def run(side: str, source: str, name: str, size: int | None, argument: str) -> Row:
    """One model in a child process: the facts it wrote, and how it ended."""
    limit = LIMITS[side]
    row: Row = {"side": side, "source": source, "name": name, "shares": {}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "facts"
        given = (side, source, name, size, argument, limit, file)
        child = FORKS.Process(target=_zoo_one.child, args=given)
        child.start()
        child.join(limit * SLOWER)
        if child.is_alive():
            child.kill()
            child.join()
        told = file.read_text().splitlines() if file.exists() else []
    for line in told:
        facts = json.loads(line)
        share = facts.pop("share", None)
        if share is None:
            row |= facts
        else:
            row["shares"][str(share)] = facts
    if child.exitcode:
        late = child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        row["ended"] = f"over {limit} s" if late else f"exit code {child.exitcode}"
    return row


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "zoo.jsonl", help="appended to")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs" / "zoo.md")
    parser.add_argument("--sides", nargs="*", default=list(LIMITS), help="ours, peer")
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--again", nargs="*", default=[], help="names to run again")
    options = parser.parse_args()
    needed("torchvision", "timm", "ultralytics", "transformers", "segmentation_models_pytorch")
    known = read(options.results)
    todo = [
        (side, *model)
        for side in options.sides
        for model in MODELS
        if ((side, *model[:2]) not in known or model[1] in options.again)
        and (not options.only or model[1] in options.only)
    ]
    with progress_bar(len(todo)) as advance:
        for side, source, name, size, argument in todo:
            advance(f"{name} ({side})")
            row = run(side, source, name, size, argument)
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    found = read(options.results)
    listed = [(source, name) for source, name, *_ in MODELS]
    rows = {k: row for k, row in found.items() if k[1:] in listed}
    text, figures = table(rows, options.docs.read_text())
    options.docs.write_text(text)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print("\n".join(line for line in text.splitlines() if line.count("|") < 9))  # no models


if __name__ == "__main__":
    main()
