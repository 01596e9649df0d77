# SPDX-License-Identifier: MIT
"""SparsityMonitor: densities of layers as a histogram or table, where a logger has one."""

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_fits import Net, fit

from regrow import MagnitudePruning, SparsityMonitor, Table

LEVELS = Table({"3it": 0.5, "9it": 0.75})
LAYERS = ["body.0.weight", "body.2.weight"]


class FakeLogger(Logger):
    """Stores scalars as `Logger` asks; subclasses have the tables of Lightning's of their name."""

    name, version = "fake", 0

    def __init__(self):
        self.scalars, self.tables = [], []

    def log_metrics(self, metrics, step=None):
        self.scalars.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


class WandbLogger(FakeLogger):
    """`WandbLogger.log_table(key, columns, data, dataframe, step)`."""

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables.append((key, columns, data, step))


class MLFlowLogger(FakeLogger):
    """`MLFlowLogger.experiment` is an `MlflowClient`: `log_table(run_id, data, artifact_file)`."""

    run_id = "run 7"

    @property
    def experiment(self):
        return self

    def log_table(self, run_id, data, artifact_file):
        self.tables.append((run_id, data, artifact_file))


def run(logger, **given):
    fit(Net(), MagnitudePruning(0.75, schedule=LEVELS), SparsityMonitor(**given), logger=logger)


def densities(scalars, step):
    [found] = [m for s, m in scalars if s == step and f"pruning/density/{LAYERS[0]}" in m]
    return [found[f"pruning/density/{name}"] for name in LAYERS]


def test_tensorboard_has_a_histogram_of_layers_at_each_event(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    run(logger)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, {"histograms": 0}).Reload()
    found = events.Histograms("pruning/densities")
    assert [one.step for one in found] == [3, 9]
    for one in found:
        scalars = {
            name: {e.step: e.value for e in events.Scalars(f"pruning/density/{name}")}
            for name in LAYERS
        }
        own = [scalars[name][one.step] for name in LAYERS]
        value = one.histogram_value
        assert value.num == len(LAYERS)
        assert value.min == pytest.approx(min(own))
        assert value.max == pytest.approx(max(own))


def test_wandb_has_a_table_of_layers_at_each_event():
    logger = WandbLogger()
    run(logger)
    assert [(key, columns, step) for key, columns, _, step in logger.tables] == [
        ("pruning/layers", ["layer", "density"], 3),
        ("pruning/layers", ["layer", "density"], 9),
    ]
    for *_, data, step in logger.tables:
        assert data == [
            [n, d] for n, d in zip(LAYERS, densities(logger.scalars, step), strict=True)
        ]


def test_mlflow_has_one_table_to_which_events_are_appended():
    logger = MLFlowLogger()
    run(logger)
    for step, (run_id, data, file) in zip((3, 9), logger.tables, strict=True):
        assert (run_id, file) == ("run 7", "pruning/layers.json")
        assert data == {
            "step": [step, step],
            "layer": LAYERS,
            "density": densities(logger.scalars, step),
        }


def test_no_table_without_layers_or_in_a_logger_that_has_none(tmp_path):
    logger = WandbLogger()
    run(logger, layers=False)
    assert logger.tables == []
    run([CSVLogger(tmp_path), FakeLogger()])
