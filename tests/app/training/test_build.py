# SPDX-License-Identifier: MIT
import importlib.util

import pytest
import torch

from regrow.app.training.build import build_data, build_logger, build_module, flatten_settings
from regrow.utils.errors import ConfigError


def test_tensorboard_by_name(job, tmp_path):
    logger = build_logger(job("logger=tensorboard"), tmp_path / "here")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    assert list((tmp_path / "here").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(("name", "package"), [("mlflow", "mlflow"), ("wandb", "wandb")])
def test_logger_whose_package_is_missing_is_refused(job, tmp_path, name, package, monkeypatch):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ConfigError, match=r"not installed.*write logger=csv"):
        build_logger(job(f"logger={name}"), tmp_path)


def test_interrupted_curve_is_kept(job, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text("step\n1\n")
    build_logger(job(), tmp_path)
    assert (tmp_path / "logs" / "metrics.0.csv").read_text() == "step\n1\n"


def test_same_seed_same_weights_and_other_seed_others(job):
    def first(seed):
        cfg = job(f"seed={seed}")
        return next(build_module(cfg, build_data(cfg)).parameters())

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_misfit_of_weights_names_what_is_wrong(job):
    cfg = job()
    data = build_data(cfg)
    weights = dict(build_module(cfg, data).network.state_dict())
    weights["fc.weight"] = torch.zeros(3, 3)
    del weights["fc.bias"]
    with pytest.raises(ConfigError, match=r"fc\.bias is missing; fc\.weight is \(3, 3\) instead"):
        build_module(cfg, data, weights)


def test_plain_is_flat():
    assert flatten_settings({"a": {"b": 1}, "c": [2]}) == {"a/b": 1, "c": [2]}
