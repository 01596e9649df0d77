# SPDX-License-Identifier: MIT
"""The content of result.json, its verdict, its tables, and finished results on disk.

`dense` and `pruned` (None without pruning: then `budget` is None too, and the other fields below
are missing) are measurements on `split`: `metric`, by which networks are compared ("accuracy", a
fraction, if that is missing; `metric_mode` says whether "max" or "min" is best), other metrics that
the module logs, such as `accuracy_top5` and `loss`, `params` and `macs` (of one image) without
those of pruned weights, `bytes`, and `latency_ms`. `levels` has the best network of each sparsity,
`history` the events of the callback.

- `of`: what was pruned, weights or channels; `sparsity` is the fraction of the prunable ones,
  `sparsity_total` that of all weights, `layers` has that of each layer.
- `lr`: the initial learning rate of the first optimizer, in the fit with pruning.
- `excluded`: the reason for each layer that was not pruned.
- `accuracy_drop`: how much worse `metric` is after pruning.
- `compression`, `theoretical_speedup` (MACs), `measured_speedup` (median latency): dense / pruned.
- `speed`: that ratio with its 95 % interval and the noise, see `Speedup`; `load` is the number of
  processes that wanted to run meanwhile (over a minute; None: unknown).
- `budget`: events of an accuracy budget, the highest sparsity kept, why the search ended, or None;
  `lost` of an event is None if the metric was not a number.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from regrow.io.files import read_json
from regrow.profiling.latency import Latency, Speedup, describe_load, machine_load
from regrow.report.load import FILE, FORMAT
from regrow.utils.lightning_classes import pl

Result = dict[str, Any]
_ACCURACIES = {"accuracy": "accuracy", "accuracy_top5": "accuracy, top 5"}  # and their labels
_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("parameters", "params", "{:,}".format),
    ("MACs per image", "macs", "{:,}".format),
    ("bytes", "bytes", "{:,}".format),
    ("latency, ms", "latency_ms", lambda x: "{median:.3f} ({p25:.3f} to {p75:.3f})".format(**x)),
)


def latency_record(latency: Latency) -> dict[str, Any]:
    """Return a measured latency in milliseconds, and how it was measured."""
    return {
        "median": latency.median_ms,
        "p25": latency.p25_ms,
        "p75": latency.p75_ms,
        "device": latency.device,
        "threads": latency.threads,
        "batch": latency.batch,
    }


def speed_record(speedup: Speedup) -> dict[str, Any]:
    """Return a measured speed-up as plain values."""
    verdict = "faster" if speedup.is_faster else "slower" if speedup.is_slower else "within noise"
    return {**asdict(speedup), "verdict": verdict, "load": machine_load()}


def finished_result(folder: Path, config_hash: str) -> Result | None:
    """Return the result in a folder if it has the same settings."""
    path = folder / FILE
    if not path.is_file():
        return None
    result: Result = read_json(path)
    same = result.get("config_hash") == config_hash and result.get("format") == FORMAT
    return result if same else None


def versions() -> dict[str, str]:
    """Return the versions of Python and the main packages."""
    lightning = pl.__name__.partition(".")[0].replace("_", "-")
    packages = ("regrow", "torch", lightning, "torchmetrics", "hydra-core", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def compare(
    dense: Mapping[str, Any], pruned: Mapping[str, Any], metric: str, mode: str
) -> dict[str, float]:
    """Compare the measurements of the pruned network with those of the dense one."""
    before, after = dense[metric], pruned[metric]
    return {
        "accuracy_drop": before - after if mode == "max" else after - before,
        "compression": dense["params"] / max(1, pruned["params"]),
        "theoretical_speedup": dense["macs"] / max(1, pruned["macs"]),
        "measured_speedup": dense["latency_ms"]["median"] / pruned["latency_ms"]["median"],
    }


def budget(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Collect the events of an accuracy budget from a history; None without one."""
    entries = [entry for entry in history if "lost" in entry]
    judged = [
        {
            "sparsity": entry["before" if entry["kind"] == "rollback" else "after"],
            "kept": entry["kind"] != "rollback",
            "lost": entry["lost"],
            "step": entry.get("step"),
            "epoch": entry.get("epoch"),
        }
        for entry in entries
    ]
    if not judged:
        return None
    return {
        "kept": max((event["sparsity"] for event in judged if event["kept"]), default=0.0),
        "rollbacks": sum(not event["kept"] for event in judged),
        "reason": entries[-1].get("reason"),
        "judged": judged,
    }


def verdict(result: Result) -> str:
    """Summarize a result in one line: accuracy, size, speed, and the accuracy budget."""
    dense, pruned = result["dense"], result["pruned"]
    metric, of_val = result.get("metric", "accuracy"), result.get("split") == "val"
    where = " on the validation set" if of_val else ""
    form = _format_of(result, metric)
    if pruned is None:
        return f"dense: {metric} {form(dense[metric])}{where}"
    drop = result["accuracy_drop"]
    change = f"{abs(100 * drop):.2f} points {'lost' if drop > 0 else 'gained'}{where}"
    if form is not _format_share:
        change = f"{metric} {abs(drop):.4g} {'worse' if drop > 0 else 'better'}{where}"
    of = result.get("of", "weights")
    gone = "of the prunable are zero" if of == "weights" else f"of the {of} are gone"
    size = f"{result['compression']:.1f}x fewer parameters ({result['sparsity']:.1%} {gone}), "
    size += f"{result['theoretical_speedup']:.1f}x fewer MACs"
    line = f"{change}, {size}; {_describe_speed(result['speed'], of)}"
    judged = result.get("budget")
    if judged is None:
        return line
    taken = f"{judged['rollbacks']} of {len(judged['judged'])} events rolled back"
    return f"{line}; budget: {judged['reason']} ({taken})"


def _describe_speed(speed: Mapping[str, Any], of: str) -> str:
    """Describe a measured speed-up, and whether the machine was busy."""
    shown = f"{speed['ratio']:.2f}x as fast ({speed['low']:.2f} to {speed['high']:.2f})"
    if speed["verdict"] == "within noise":
        shown = f"as fast within noise ({speed['low']:.2f}x to {speed['high']:.2f}x)"
        if of == "weights":
            shown += ": dense kernels multiply zeros too; channels make a network faster"
    return shown + describe_load(speed["load"])


def _format_share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _format_number(value: float) -> str:
    return f"{value:.4g}"


def _format_of(result: Mapping[str, Any], metric: str) -> Callable[[float], str]:
    """Return how a metric is shown: as a share if it is an accuracy whose values are fractions."""
    values = [block[metric] for block in (result["dense"], result["pruned"]) if block]
    share = metric in _ACCURACIES and all(v is not None and 0 <= v <= 1 for v in values)
    return _format_share if share else _format_number


def device_name() -> str:
    """Return the name of the device of latency measurements."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def result_table(result: dict[str, Any]) -> Table:
    """Return the table of a run."""
    dense, pruned = result["dense"], result["pruned"]
    table = Table("", title=f"{result['recipe']} (seed {result['seed']})")
    for head in ("dense",) if pruned is None else ("dense", "pruned", "change"):
        table.add_column(head, justify="right")
    for label, key, form in _rows(result):
        row = [label, form(dense[key])]
        if pruned is not None:
            share = form is _format_share
            change = _change(key, dense[key], pruned[key], result["speed"], share=share)
            row += [form(pruned[key]), change]
        table.add_row(*row)
    if pruned is not None:
        of = result.get("of", "weights")
        label = "sparsity of the prunable" if of == "weights" else f"sparsity, of {of}"
        table.add_row(label, "0.00 %", f"{100 * result['sparsity']:.2f} %", "")
        table.add_row("sparsity of all", "0.00 %", f"{100 * result['sparsity_total']:.2f} %", "")
    table.caption = result["verdict"]
    return table


def _rows(result: Mapping[str, Any]) -> list[tuple[str, str, Callable[[Any], str]]]:
    """Return the label, the key and the format of each measurement of a result."""
    dense = result["dense"]
    split = "validation" if result.get("split") == "val" else "test"
    rows: list[tuple[str, str, Callable[[Any], str]]] = [
        (f"{split} {label}", key, _format_of(result, key))
        for key, label in _ACCURACIES.items()
        if key in dense
    ]
    rows += [(f"{split} loss", "loss", "{:.4f}".format), *_ROWS]
    known = {*_ACCURACIES, *(key for _, key, _ in rows)}
    own = [(key, key, _format_number) for key in dense if key not in known]
    blocks = [block for block in (dense, result["pruned"]) if block]
    every = [*own, *(row for row in rows if row[1] in dense)]
    return [row for row in every if all(block[row[1]] is not None for block in blocks)]


def levels_table(result: dict[str, Any]) -> Table:
    """Return the table of accuracy at each trained sparsity; without a test set, of validation."""
    of_val = result.get("split") == "val"
    heads = ("validation",) if of_val else ("validation", "test")
    table = Table("sparsity", "epoch", *heads, title="best of each sparsity")
    metric = result.get("metric", "accuracy")
    form = _format_of(result, metric)
    for level in result["levels"]:
        validated = level.get("val_accuracy") if metric == "accuracy" else level["monitored"]
        measured = level[f"test_{metric}"]  # on the split of the result
        cells = (measured,) if of_val else (validated, measured)
        shown = ["-" if cell is None else form(cell) for cell in cells]
        table.add_row(f"{100 * level['sparsity']:.2f} %", str(level["epoch"]), *shown)
    return table


def budget_table(result: dict[str, Any]) -> Table:
    """Return the table of the events of an accuracy budget."""
    judged = result["budget"]
    table = Table("epoch", "sparsity", "lost", "outcome", title="accuracy budget")
    for event in judged["judged"]:
        lost = "-" if event["lost"] is None else f"{event['lost']:.4f}"
        outcome = "kept" if event["kept"] else "rolled back"
        table.add_row(str(event["epoch"]), f"{100 * event['sparsity']:.2f} %", lost, outcome)
    table.caption = judged["reason"]
    return table


def show_result(result: dict[str, Any]) -> None:
    """Print all tables of a result."""
    console = Console()
    if result.get("budget"):
        console.print(budget_table(result))
    if len(result["levels"]) > 1:
        console.print(levels_table(result))
    console.print(result_table(result))


def _change(key: str, dense: Any, pruned: Any, speed: Mapping[str, Any], *, share: bool) -> str:
    if share:
        return f"{100 * (pruned - dense):+.2f} points"
    if key == "loss":
        return f"{pruned - dense:+.4f}"
    if key == "latency_ms":
        within = speed["verdict"] == "within noise"
        return "within noise" if within else f"{speed['ratio']:.2f}x as fast"
    if isinstance(dense, float):  # another metric
        return f"{pruned - dense:+.4g}"
    return f"{dense / max(1, pruned):.2f}x fewer"
