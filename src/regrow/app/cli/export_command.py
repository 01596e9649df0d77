# SPDX-License-Identifier: MIT
"""Run `regrow export`."""

from __future__ import annotations

import copy
import gzip
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.app.experiment.load_run import combined_masks, load_run, load_small
from regrow.app.training.build import build_data, build_module, network_of
from regrow.app.training.classifier import Task
from regrow.app.training.module_metrics import evaluate, metric_of, split_of
from regrow.calibration.calibrate import inputs_of
from regrow.channels.cut.channel_cut import ChannelCut, load
from regrow.channels.cut.verify import relative_error
from regrow.io.export import SUFFIXES, Exported, export, written_size
from regrow.io.files import temporary_beside
from regrow.io.onnx_network import OnnxNetwork, quantize_onnx
from regrow.masks.masks import Masks
from regrow.profiling.cost import cost
from regrow.profiling.latency import (
    Comparison,
    compare_latency,
    describe_load,
    machine_load,
)
from regrow.utils.batches import batch_size, call, noise_like, resize_batch
from regrow.utils.errors import DataError, StateError
from regrow.utils.lightning_classes import pl

_IMAGES = 32  # number of images for the check of the file
_BATCHES = (1, 32)  # batch sizes of the latency measurements


def export_checkpoint(
    path: Path,
    to: str,
    out: Path,
    sparse: bool = False,
    values: str | None = None,
    int8: bool = False,
) -> None:
    """Export the network of a run's checkpoint, check the file, and print its cost.

    `to`, `sparse` and `values` are those of `regrow.export`; `int8` converts the ONNX file to a
    second one, `NAME.int8.onnx`.
    """
    cfg, checkpoint = load_run(path)
    data = build_data(cfg)
    dense, small = build_module(cfg, data), build_module(cfg, data)
    plan = load_small(small, checkpoint)
    images, source = some_images(dense, data)
    network = network_of(dense)
    exported, changed = _export(
        network_of(small), copy.deepcopy(network), out, to, images, plan, sparse, values
    )
    console = Console()
    console.print(_summary(exported, source, changed), soft_wrap=True)
    same = plan is None and not sparse
    dense_bytes = exported.bytes if same else written_size(network, to, images)
    repeats = max(2, int(OmegaConf.select(cfg, "latency.repeats", default=50)))
    sizes, masks = (dense_bytes, exported.bytes), combined_masks(checkpoint)
    console.print(cost_table(dense, small, masks, sizes, images, repeats))
    if int8:
        data.prepare_data()
        data.setup("fit")
        done = quantize_onnx(out, out.with_suffix(".int8.onnx"), data.train_dataloader())
        console.print(
            f"{os.path.relpath(done.path)}: {done.weights:,} weights in int8, {done.zeros:,} of "
            f"them zero as before; outputs differ by {done.error:.1e} of the largest at most",
            soft_wrap=True,
        )
        console.print(int8_table(cfg, small, data, (out, done.path), images, repeats))
    if to == "safetensors":
        console.print(file_table(network_of(small), plan, values))


def file_table(network: nn.Module, plan: ChannelCut | None, values: str | None) -> Table:
    """Return a table of the sizes of files of one network, with and without gzip."""
    heads = ("bytes", "share", "gzip -6, bytes", "share")
    table = _table_of_numbers("size of this network's files", "file", *heads)
    forms: dict[str, dict[str, Any]] = {"all weights": {}, "--sparse": {"sparse": True}}
    if values is not None:
        forms[f"--sparse --values {values}"] = {"sparse": True, "values": values}
    dense = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, form in forms.items():
            file = Path(folder) / "model.safetensors"
            size = export(network, file, plan=plan, **form).bytes
            dense, zipped = dense or size, len(gzip.compress(file.read_bytes(), 6))
            cells = [cell for n in (size, zipped) for cell in (f"{n:,}", f"{n / dense:.1%}")]
            table.add_row(name, *cells)
    return table


def some_images(module: pl.LightningModule, data: pl.LightningDataModule) -> tuple[Any, str]:
    """Return inputs of the test set (or validation set), or random ones if it is missing."""
    try:
        split = split_of(module, data)
        data.prepare_data()
        data.setup("test" if split == "test" else "validate")
        loader = data.test_dataloader() if split == "test" else data.val_dataloader()
        [images] = inputs_of(network_of(module), islice(loader, 1), None)
        count = min(_IMAGES, batch_size(images))
        return resize_batch(images, count), f"{count} {split} images"
    except (DataError, ImportError):
        images = noise_like(resize_batch(module.example_input_array, _IMAGES))
        return images, f"{_IMAGES} random images, as the test set is missing"


def cost_table(
    dense: nn.Module,
    small: nn.Module,
    masks: Masks | None,
    sizes: tuple[int, int],
    images: Any,
    repeats: int,
) -> Table:
    """Return a table that compares the dense network with the exported one."""
    table = _table_of_numbers("cost", "", "dense", "exported", "change")
    before, after = (
        cost(m, resize_batch(images, 1), k) for m, k in ((dense, None), (small, masks))
    )
    for label, old, new in (
        ("parameters", before.params, after.params),
        ("MACs per image", before.macs, after.macs),
        ("bytes on disk", *sizes),
    ):
        table.add_row(label, f"{old:,}", f"{new:,}", f"{old / max(1, new):.2f}x fewer")
    networks = [network_of(dense), network_of(small)]
    _add_latencies(table, _compare_latencies(networks, images, repeats), "PyTorch", repeats)
    if masks is not None:
        masked = "masked weights are not counted; dense kernels multiply them as zeros"
        table.caption = f"{table.caption}; {masked}"
    return table


def int8_table(
    cfg: DictConfig,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    files: tuple[Path, Path],
    images: Any,
    repeats: int,
) -> Table:
    """Return a table that compares the ONNX files of a network in float32 and int8."""
    table = _table_of_numbers("int8", "", "float32", "int8", "change")
    networks = [OnnxNetwork(file) for file in files]
    if isinstance(module, Task):  # another LightningModule has no network that can be replaced
        split, (metric, _) = split_of(module, data), metric_of(cfg, module)
        scores = []
        for network in networks:
            module.network = network
            scores.append(evaluate(cfg, module, data)[metric])
        change = f"{scores[1] - scores[0]:+.4f}"
        table.add_row(f"{split} {metric}", *(f"{score:.4f}" for score in scores), change)
    sizes = [file.stat().st_size for file in files]
    table.add_row("bytes on disk", *(f"{n:,}" for n in sizes), f"{sizes[0] / sizes[1]:.2f}x fewer")
    compared = {
        f"latency of {batch}, ms": compare_latency(
            networks[0], networks[1], resize_batch(images, batch), repeats=repeats
        )
        for batch in (_BATCHES if networks[0].batch is None else (networks[0].batch,))
    }
    _add_latencies(table, compared, "ONNX Runtime", repeats)
    return table


def _table_of_numbers(title: str, first: str, *heads: str) -> Table:
    table = Table(first, title=title)
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _add_latencies(
    table: Table, compared: Mapping[str, Comparison], runtime: str, repeats: int
) -> None:
    """Add the rows of latencies, by label, and how they were measured."""
    for label, timed in compared.items():
        slow, fast = timed.reference.median_ms, timed.model.median_ms
        table.add_row(label, f"{slow:.3f}", f"{fast:.3f}", str(timed.speedup))
    table.caption = (
        f"latency: median of {repeats} passes each, in alternation, {runtime} on the CPU, "
        f"{torch.get_num_threads()} thread(s); change: ratio with its 95 % interval"
        f"{describe_load(machine_load())}"
    )


def _export(
    network: nn.Module,
    fresh: nn.Module,
    out: Path,
    to: str,
    images: Any,
    plan: ChannelCut | None,
    sparse: bool,
    values: str | None,
) -> tuple[Exported, float]:
    """Export; check that a file of weights restores the network in `fresh`, else write nothing.

    Also returns the largest difference of outputs, relative to the largest.
    """
    changed = 0.0
    with temporary_beside(out, SUFFIXES[to]) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*takes batches of")  # printed in the summary
        exported = export(network, file, images, to=to, plan=plan, sparse=sparse, values=values)
        if to == "safetensors":
            with torch.no_grad():
                models = (network, load(fresh, file))
                outputs = [
                    [x for x in tree_leaves(call(model, images)) if isinstance(x, Tensor)]
                    for model in (copy.deepcopy(model).eval() for model in models)
                ]
            if values is None and not all(map(torch.equal, *outputs)):
                raise StateError(f"{out.name} would not restore the network: nothing written")
            changed = max(map(relative_error, outputs[1], outputs[0]))
    return replace(exported, path=out), changed


def _compare_latencies(
    networks: list[nn.Module], images: Any, repeats: int
) -> dict[str, Comparison]:
    """Compare two networks for each memory format and batch size, by label."""
    compared = {}
    formats = {"": torch.contiguous_format}
    if isinstance(images, Tensor) and images.dim() == 4:
        formats[", channels last"] = torch.channels_last
    for suffix, form in formats.items():
        dense, small = (copy.deepcopy(network) for network in networks)
        for network in (dense, small):
            network.to(memory_format=form)  # type: ignore[call-overload]
        for batch in _BATCHES:
            given = resize_batch(images, batch)
            if isinstance(given, Tensor) and given.dim() == 4:
                given = given.contiguous(memory_format=form)
            label = f"latency of {batch}, ms{suffix}"
            compared[label] = compare_latency(dense, small, given, repeats=repeats)
    return compared


def _summary(exported: Exported, source: str, changed: float) -> str:
    size = f"{os.path.relpath(exported.path)}: {exported.bytes:,} bytes, checked on {source}"
    if exported.error and exported.to == "safetensors":
        return (
            f"{size}: rounded weights, which differ by {exported.error:.1e} of the largest of "
            f"their layer at most, and outputs by {changed:.1e} of the largest; regrow.load "
            "restores the network"
        )
    if exported.to == "safetensors":
        return f"{size}: bit-identical weights; regrow.load restores the network"
    batch = "any batch size"
    if exported.batch is not None:
        batch = f"batches of {exported.batch} only ({exported.reason})"
    return f"{size}: outputs differ by {exported.error:.1e} of the largest at most; takes {batch}"
