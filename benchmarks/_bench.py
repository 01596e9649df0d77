# SPDX-License-Identifier: MIT
"""Shared by the benchmarks: interleaved timing, peak memory, sweeps, and printed results."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

Row = dict[str, Any]
LENET = "fashion_mnist/lenet300_"


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    script = Path(sys.argv[0])
    parser.add_argument("--out", type=Path, default=script.with_suffix(".json"), help="JSON file")
    parser.add_argument("--rounds", type=int, default=9, help="repeats of each variant")
    return parser


def resnet18() -> nn.ModuleList:
    """The 21 prunable layers of a ResNet-18 with 10 classes: 11.2 million weights.

    He-initialised, as residual networks are.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, bias=False)]
    inputs = 64
    for width in (64, 128, 256, 512):
        layers += [nn.Conv2d(inputs, width, 3, bias=False), nn.Conv2d(width, width, 3, bias=False)]
        layers += [nn.Conv2d(width, width, 3, bias=False) for _ in range(2)]
        if inputs != width:
            layers += [nn.Conv2d(inputs, width, 1, bias=False)]
        inputs = width
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.ModuleList([*layers, nn.Linear(512, 10, bias=False)])


def lenet() -> nn.ModuleList:
    """The weights of LeNet-300-100: 266,200."""
    sizes = ((784, 300), (300, 100), (100, 10))
    return nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in sizes)


def interleaved(
    variants: Mapping[str, Callable[[], Callable[[], object]]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each variant in each round; every round runs all variants in turn.

    A variant makes ready and returns what is timed. CPU time, because other processes may share
    the machine, or another clock for other devices; every round starts with another variant.
    """
    found: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for index in range(-1, rounds):  # the first one warms up
        turn = max(0, index) % len(names)
        for name in names[turn:] + names[:turn]:
            timed = variants[name]()
            start = clock()
            timed()
            if index >= 0:
                found[name].append(clock() - start)
    return found


def ratio(found: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median of the ratios within each round."""
    pairs = zip(found[name], found[base], strict=True)
    return statistics.median(one / other for one, other in pairs)


def in_child(function: Callable[..., Any], *given: Any) -> Any:
    """Runs a function in a fresh process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def peak_extra(function: Callable[[], object]) -> int:
    """Bytes by which the resident memory grows at its peak, what is returned included (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmHWM")
    result = function()
    grown = _status("VmHWM") - before
    del result
    return grown


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def show(title: str, rows: Sequence[Row], claims: Mapping[str, tuple[float, float]], out: Path):
    """Prints the rows and the claims (measured, allowed), and writes both as JSON."""
    console = Console()
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)
    for claim, (measured, allowed) in claims.items():
        verdict = "holds" if measured <= allowed else "DOES NOT HOLD"
        console.print(f"{claim}: {measured:.3f}, at most {allowed}: {verdict}")
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    checked = {c: {"measured": m, "allowed": a, "holds": m <= a} for c, (m, a) in claims.items()}
    result = {"title": title, "machine": machine, "rows": list(rows), "claims": checked}
    out.write_text(json.dumps(result, indent=2) + "\n")


def sweep_arguments(description: str) -> argparse.ArgumentParser:
    parser = arguments(description)
    parser.add_argument("--seeds", default="0,1,2")
    # one folder for all sweeps: what one has finished the next does not train again
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmarks"))
    return parser


def sweep(recipes: Sequence[str], seeds: Sequence[str], folder: Path) -> dict[str, list[Row]]:
    """The results of each LeNet-300-100 recipe, in the order of seeds; trains what is missing."""
    folder = folder.absolute()
    words = [
        f"recipe={','.join(LENET + recipe for recipe in recipes)}",
        f"seed={','.join(seeds)}",
        f"hydra.sweep.dir={folder}",
        f"paths.controls={folder / 'controls'}",
        "hydra.job.config.override_dirname.exclude_keys=[recipe,seed,paths.controls]",
    ]
    subprocess.run([sys.executable, "-m", "regrow", "train", "-m", *words], check=True)
    found: dict[str, list[Row]] = {}
    for recipe in recipes:
        files = (folder / (LENET + recipe)).rglob("result.json")
        results = {str(r["seed"]): r for r in (json.loads(file.read_text()) for file in files)}
        found[recipe] = [results[seed] for seed in seeds]
    return found


def accuracies(results: Sequence[Row], network: str = "pruned") -> list[float]:
    """Test accuracies in percent, of the "pruned" networks or of their "dense" controls."""
    return [100 * result[network]["accuracy"] for result in results]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
