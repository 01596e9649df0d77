# SPDX-License-Identifier: MIT
import importlib.util

import pytest
import torch

from regrow.app.training.build import build_data, build_logger, build_module, flatten_settings
from regrow.utils.errors import ConfigError


def test_tensorboard_is_selected_by_name(job, tmp_path):
    logger = build_logger(job("logger=tensorboard"), tmp_path / "here")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    assert list((tmp_path / "here").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(("name", "package"), [("mlflow", "mlflow"), ("wandb", "wandb")])
def test_logger_without_its_package_raises(job, tmp_path, name, package, monkeypatch):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ConfigError, match=r"not installed.*write logger=csv"):
        build_logger(job(f"logger={name}"), tmp_path)


def test_log_of_an_interrupted_run_is_kept(job, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text("step\n1\n")
    build_logger(job(), tmp_path)
    assert (tmp_path / "logs" / "metrics.0.csv").read_text() == "step\n1\n"


def test_weights_depend_on_the_seed_only(job):
    def first(seed):
        cfg = job(f"seed={seed}")
        return next(build_module(cfg, build_data(cfg)).parameters())

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_weights_that_do_not_fit_raise_with_the_names(job):
    cfg = job()
    data = build_data(cfg)
    weights = dict(build_module(cfg, data).network.state_dict())
    weights["fc.weight"] = torch.zeros(3, 3)
    del weights["fc.bias"]
    with pytest.raises(ConfigError, match=r"fc\.bias is missing; fc\.weight is \(3, 3\) instead"):
        build_module(cfg, data, weights)


def test_settings_are_flattened_for_loggers():
    assert flatten_settings({"a": {"b": 1}, "c": [2]}) == {"a/b": 1, "c": [2]}
