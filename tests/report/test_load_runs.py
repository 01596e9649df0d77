# SPDX-License-Identifier: MIT
"""A result is read completely, or an error gives the reason."""

import json

import pytest
from fake_results import dense_result, result, write

from regrow.report.load import read_run
from regrow.report.tasks import make_tasks
from regrow.utils.errors import DataError


@pytest.mark.parametrize("content", [result(), dense_result()])
def test_a_result_is_read(tmp_path, content):
    assert read_run(write(tmp_path, content)).result == content


def without(content, *path):
    node = content = json.loads(json.dumps(content))
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    return content


@pytest.mark.parametrize(
    "path",
    [("settings",), ("dense",), ("dense", "macs"), ("pruned", "accuracy"), ("sparsity_total",)],
)
def test_missing_keys_raise_with_their_names(tmp_path, path):
    with pytest.raises(DataError, match=rf"lacks {'.'.join(path)}: remove it and run"):
        read_run(write(tmp_path, without(result(), *path)))


def test_values_of_another_type_raise_with_their_names(tmp_path):
    with pytest.raises(DataError, match=r"pruned.accuracy='high', which is not of type real"):
        read_run(write(tmp_path, result(pruned={"accuracy": "high"})))


def test_another_format_raises_with_the_version_that_wrote_it(tmp_path):
    content = result(format=7, versions={"regrow": "9.9"})
    with pytest.raises(DataError, match=r"format 7, this version .* reads 2.*\(regrow 9.9\)"):
        read_run(write(tmp_path, content))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format": NaN}'])
def test_damaged_result_raises(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(DataError, match="remove it and run the job again"):
        read_run(tmp_path)


def test_learning_rate_and_batch_size_are_read_from_the_fit(tmp_path):
    tuned = {"finetune": {"lr": 0.01, "batch_size": 32}}
    scratch = read_run(write(tmp_path / "a", result(setting=tuned)))
    paths = ("optimizer.lr", "data.batch_size")
    assert [*map(scratch.fit_setting, paths)] == [0.05, 64]  # no fine-tuning: those do not count
    later = read_run(write(tmp_path / "b", result(setting=tuned | {"start": None})))
    assert [*map(later.fit_setting, paths)] == [0.01, 32]


def with_metric(name, mode, value):
    """A result whose module logs another metric than accuracy."""
    content = result(metric=name, metric_mode=mode)
    for network in (content["dense"], content["pruned"]):
        del network["accuracy"]
        network[name] = value
    content["levels"] = [{"sparsity": 0.5, "monitored": 0.8, f"test_{name}": 0.7, "epoch": 1}]
    return content


def test_another_fraction_takes_the_place_of_the_accuracy(tmp_path):
    run = read_run(write(tmp_path, with_metric("f1", "max", 0.75)))
    [task] = make_tasks([run])
    assert task.name.endswith(" · f1")
    assert task.rows["accuracy"].tolist() == [0.7, 0.75]
    assert task.rows["val_accuracy"].tolist() == [0.8, None]


@pytest.mark.parametrize(("mode", "value"), [("min", 0.5), ("max", 31.0), ("max", None)])
def test_metrics_that_are_no_fractions_are_not_shown_as_such(tmp_path, mode, value):
    with pytest.raises(DataError, match="has the metric mse, the report compares fractions"):
        read_run(write(tmp_path, with_metric("mse", mode, value)))


@pytest.mark.parametrize("value", [86.67, -0.1])
def test_an_accuracy_that_is_no_fraction_is_not_shown_as_such(tmp_path, value):
    with pytest.raises(DataError, match="has the metric accuracy, the report compares fractions"):
        read_run(write(tmp_path, result(accuracy=value)))
    with pytest.raises(DataError, match="has the metric accuracy, the report compares fractions"):
        read_run(write(tmp_path, dense_result(accuracy=value)))
