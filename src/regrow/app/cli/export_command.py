# SPDX-License-Identifier: MIT
"""Regrow export."""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from regrow.app.data.base import DataModule
from regrow.app.experiment.load_run import load_small, masks_of, run_config
from regrow.app.training.build import build_data, build_module
from regrow.app.training.classifier import Classifier
from regrow.channels.cut.channel_cut import ChannelCut, load
from regrow.io.checkpoints import read_checkpoint
from regrow.io.export import SUFFIXES, Exported, export, written_size
from regrow.io.files import temporary_beside
from regrow.masks.masks import Masks
from regrow.profiling.cost import cost
from regrow.profiling.latency import latencies
from regrow.utils.errors import ConfigError, DataError, StateError

_IMAGES = 32  # that the file is checked on


_BATCHES = (1, 32)  # that are timed


def export_checkpoint(path: Path, to: str, out: Path) -> None:
    """Exports the network of a run's checkpoint, checks the file and prints what it costs.

    Args:
        path: A checkpoint in the folder of a run of `regrow train`.
        to: "onnx", "safetensors" or "pt2".
        out: The file to write.

    Raises:
        ConfigError: If the checkpoint is not of a run, or the network cannot be exported.
        StateError: If the checkpoint is damaged, or the file is not the network.
    """
    cfg, checkpoint = run_config(path), read_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise ConfigError(f"{path} is no checkpoint of a run: it holds no state_dict")
    if isinstance(cfg.get("threads"), int):  # "auto" is for jobs side by side
        torch.set_num_threads(cfg.threads)
    data = build_data(cfg)
    dense, small = build_module(cfg, data), build_module(cfg, data)
    plan = load_small(small, checkpoint)
    console, (images, what) = Console(), some_images(data)
    fresh = copy.deepcopy(dense.network)
    done = _written(small.network, fresh, out, to, images, plan)
    console.print(_summary(done, what), soft_wrap=True)
    dense_bytes = done.bytes
    if plan is not None:
        dense_bytes = written_size(dense.network, to, images)
    masks = masks_of(checkpoint)
    table = cost_table(dense, small, masks, (dense_bytes, done.bytes), images, _repeats(cfg))
    console.print(table)


def some_images(data: DataModule) -> tuple[Tensor, str]:
    """Some images of the test set as the network sees them; random ones where that is not here."""
    try:
        images, _ = next(iter(data.test_dataloader()))
        return images[:_IMAGES], f"{len(images[:_IMAGES])} test images"
    except (DataError, ImportError):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(_IMAGES, *data.input_shape, generator=generator)
        return images, f"{_IMAGES} random images, as the test set is not here"


def cost_table(
    dense: Classifier,
    small: Classifier,
    masks: Masks | None,
    sizes: tuple[int, int],
    images: Tensor,
    repeats: int,
) -> Table:
    """The dense network against the exported one."""
    table = Table("", title="cost")
    for head in ("dense", "exported", "change"):
        table.add_column(head, justify="right")
    costs = [cost(dense, images[:1]), cost(small, images[:1], masks)]
    rows = [("parameters", [c.params for c in costs]), ("MACs an image", [c.macs for c in costs])]
    for label, (before, after) in [*rows, ("bytes on disk", sizes)]:
        change = f"{before / max(1, after):.2f}x fewer"
        table.add_row(label, f"{before:,}", f"{after:,}", change)
    networks = [dense.network, small.network]
    for label, (slow, fast) in _times(networks, images, repeats).items():
        table.add_row(label, f"{slow:.3f}", f"{fast:.3f}", f"{slow / fast:.2f}x as fast")
    table.caption = (
        f"latency: median of {repeats} passes each, in turns, PyTorch on the CPU, "
        f"{torch.get_num_threads()} thread(s)"
    )
    if masks is not None:
        table.caption += (
            "; parameters and MACs leave masked weights out, which the file stores, and a dense "
            "kernel multiplies, as zeros"
        )
    return table


def _written(
    network: nn.Module,
    fresh: nn.Module,
    out: Path,
    to: str,
    images: Tensor,
    plan: ChannelCut | None,
) -> Exported:
    """Exports; a file of weights is loaded into a fresh network too, which must compute the same.

    Raises:
        StateError: If it does not; the file does not appear.
    """
    with temporary_beside(out, SUFFIXES[to]) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*takes batches of")  # the summary says it
        done = export(network, file, images, to=to, plan=plan)
        if to == "safetensors":
            outputs = []
            for model in (network, load(fresh, file)):
                with torch.no_grad():
                    outputs.append(copy.deepcopy(model).eval()(images))
            if not torch.equal(*outputs):
                raise StateError(f"what {out.name} would load is not the network: nothing written")
    return replace(done, path=out)


def _times(
    networks: list[nn.Module], images: Tensor, repeats: int
) -> dict[str, tuple[float, float]]:
    """Medians in milliseconds, by what is timed."""
    found = {}
    formats = {"": torch.contiguous_format}
    if images.dim() == 4:
        formats[", channels last"] = torch.channels_last
    for words, form in formats.items():
        laid: list[Any] = [copy.deepcopy(network) for network in networks]
        laid = [network.to(memory_format=form) for network in laid]
        for batch in _BATCHES:
            given = images.new_zeros(batch, *images.shape[1:]).contiguous(memory_format=form)
            slow, fast = latencies(laid, given, repeats=repeats)
            found[f"latency of {batch}, ms{words}"] = (slow.median_ms, fast.median_ms)
    return found


def _repeats(cfg: DictConfig) -> int:
    return max(2, int(OmegaConf.select(cfg, "latency.repeats", default=50)))


def _summary(done: Exported, what: str) -> str:
    size = f"{os.path.relpath(done.path)}: {done.bytes:,} bytes, checked on {what}"
    if done.to == "safetensors":
        return f"{size}: bit-identical weights; regrow.channels.load restores the network"
    batch = "any batch size"
    if done.batch is not None:
        batch = f"batches of {done.batch} only ({done.reason})"
    return f"{size}: outputs differ by {done.error:.1e} of the largest at most; takes {batch}"
