# SPDX-License-Identifier: MIT
"""SparsityMonitor: what it logs, where, and when."""

import csv

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from tiny_fits import WEIGHTS, Net, fit, loader, trainer

from regrow import ConfigError, MagnitudePruning, SparsityMonitor, Table

LEVELS = Table({"3it": 0.5, "9it": 0.75})


class Seen(Callback):
    """Record what other callbacks and the progress bar can read after each batch."""

    def __init__(self):
        self.metrics, self.bars, self.measured = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.bars.append(dict(trainer.progress_bar_metrics))
        weights = [p for p in pl_module.parameters() if p.dim() > 1]
        self.measured.append([int((p == 0).sum()) / p.numel() for p in weights])


def test_sparsity_is_logged_after_every_batch():
    seen = Seen()
    fit(Net(), MagnitudePruning(0.75, schedule=LEVELS), SparsityMonitor(), seen)
    for step, (metrics, bar) in enumerate(zip(seen.metrics, seen.bars, strict=True)):
        expected = 0.0 if step < 3 else 0.5 if step < 9 else 0.75
        assert metrics["pruning/sparsity"] == pytest.approx(expected)
        assert metrics["pruning/target"] == pytest.approx(expected)
        assert bar["pruning/sparsity"] == pytest.approx(expected)
        assert "pruning/target" not in bar


def test_layer_densities_are_logged_at_the_end_of_an_epoch():
    seen, module = Seen(), Net()
    made = fit(module, MagnitudePruning(0.75, schedule=LEVELS), SparsityMonitor(), seen)
    for name, sparsity in zip(("body.0.weight", "body.2.weight"), seen.measured[-1], strict=True):
        logged = made.callback_metrics[f"pruning/density/{name}"]
        assert float(logged) == pytest.approx(1 - sparsity)
    made = fit(Net(), MagnitudePruning(0.75, schedule=LEVELS), SparsityMonitor(layers=False))
    assert not [key for key in made.callback_metrics if "density" in key]
    assert float(made.callback_metrics["pruning/sparsity"]) == pytest.approx(0.75)


def test_the_total_is_the_share_of_all_parameters():
    module = Net()
    made = fit(module, MagnitudePruning(0.75, schedule=LEVELS), SparsityMonitor())
    zeros = sum(int((p == 0).sum()) for p in module.parameters() if p.dim() > 1)
    everything = sum(p.numel() for p in module.parameters())
    logged = float(made.callback_metrics["pruning/sparsity_total"])
    assert logged == pytest.approx(zeros / everything)
    assert logged < 0.75


def test_prog_bar_false_hides_the_sparsity():
    seen = Seen()
    fit(Net(), MagnitudePruning(0.75, schedule=LEVELS), SparsityMonitor(prog_bar=False), seen)
    assert not any("pruning/sparsity" in bar for bar in seen.bars)


def test_logger_receives_one_row_per_epoch(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = SparsityMonitor()
    fit(Net(), MagnitudePruning(0.75, schedule=LEVELS), monitor, logger=logger, val=loader())
    with open(logger.log_dir + "/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["pruning/sparsity"]]
    found = [(int(row["step"]), float(row["pruning/sparsity"])) for row in rows]
    assert found == [(3, 0.5), (7, 0.5), (9, 0.75), (15, 0.75)]
    for row in rows:
        kept = float(row["pruning/density/body.0.weight"]) * 96
        kept += float(row["pruning/density/body.2.weight"]) * 48
        assert kept == pytest.approx((1 - float(row["pruning/sparsity"])) * WEIGHTS)
        assert float(row["pruning/target"]) == pytest.approx(float(row["pruning/sparsity"]))


def test_sparsity_counts_masks_and_not_zeros():
    """A weight that happens to be zero is not pruned."""
    module = Net()
    with torch.no_grad():
        module.body[0].weight.zero_()
    seen = Seen()
    fit(module, SparsityMonitor(), MagnitudePruning(0.5, schedule=Table({"9it": 0.5})), seen)
    assert seen.metrics[0]["pruning/sparsity"] == 0


def test_manual_changes_are_logged():
    class ByHand(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 12:
                pruning.unprune("body.2")

    pruning, seen = MagnitudePruning(0.75, schedule=LEVELS), Seen()
    fit(Net(), SparsityMonitor(), pruning, ByHand(), seen)
    assert seen.metrics[-1]["pruning/sparsity"] == pytest.approx(seen.measured[-1][0] * 2 / 3)


def test_a_resumed_and_a_second_fit_show_the_sparsity_from_the_start(tmp_path):
    pruning, module, seen = MagnitudePruning(0.75, schedule=LEVELS), Net(), Seen()
    made = trainer(pruning, SparsityMonitor(), seen)
    made.fit(module, loader())
    made.save_checkpoint(tmp_path / "end.ckpt")
    seen.metrics.clear()
    made.fit_loop.max_epochs = 3
    made.fit(module, loader())
    assert seen.metrics[0]["pruning/sparsity"] == pytest.approx(0.75)
    seen = Seen()
    fit(Net(), SparsityMonitor(), MagnitudePruning(0.75, schedule=LEVELS), seen,
        ckpt_path=tmp_path / "end.ckpt", max_epochs=3)  # fmt: skip
    assert seen.metrics[0]["pruning/sparsity"] == pytest.approx(0.75)


def test_without_a_pruning_callback_it_raises():
    module = Net()
    with pytest.raises(ConfigError, match="needs a pruning callback"):
        fit(module, SparsityMonitor())
    assert module.trained == 0


def test_works_in_a_barebones_trainer():
    module = Net()
    fit(module, MagnitudePruning(0.75, schedule=LEVELS), SparsityMonitor(), barebones=True,
        logger=None, enable_checkpointing=None, enable_progress_bar=None,
        enable_model_summary=None, num_sanity_val_steps=None)  # fmt: skip
    assert module.trained == 16


def test_every_value_is_current_within_an_epoch():
    seen, module = Seen(), Net()
    fit(module, MagnitudePruning(0.75, schedule=LEVELS), SparsityMonitor(), seen, max_epochs=2)
    sizes = [p.numel() for p in module.parameters() if p.dim() > 1]
    total = sum(p.numel() for p in module.parameters())
    for metrics, shares in zip(seen.metrics[4:], seen.measured[4:], strict=True):
        zeros = sum(share * size for share, size in zip(shares, sizes, strict=True))
        assert metrics["pruning/sparsity_total"] == pytest.approx(zeros / total)
        for name, share in zip(("body.0", "body.2"), shares, strict=True):
            assert metrics[f"pruning/density/{name}.weight"] == pytest.approx(1 - share)
