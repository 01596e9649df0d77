# SPDX-License-Identifier: MIT
"""The table at the start of a fit says what is pruned, what is not, and why."""

import warnings

import pytest
from rich.console import Console
from tiny_fits import SGD, Net, fit
from torch import nn

from regrow import MagnitudePruning, OneShot
from regrow.callbacks.core.summary import render_summary


@pytest.fixture(autouse=True)
def lightning_logs(caplog):
    """Show Lightning's log lines, independent of earlier tests in this process."""
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        yield


class Mixed(Net):
    def __init__(self):
        super().__init__(SGD)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))
        self.table = nn.Embedding(5, 4)


def text(callback):
    console = Console(width=200, record=True)
    console.print(render_summary(callback.session, type(callback).__name__))
    return console.export_text()


def rows(shown):
    """The first and last cell of each row."""
    cells = [[c.strip() for c in line.strip("│┃ ").split("│")] for line in shown.splitlines()]
    return {row[0]: row[-1] for row in cells if len(row) == 4}


def attached(**kw):
    callback = MagnitudePruning(0.75, schedule=OneShot("3it"), **kw)
    fit(Mixed(), callback, max_steps=5, max_epochs=-1)
    return callback


def caption(shown):
    """The caption of the table, as one line."""
    return " ".join(line.strip() for line in shown.rpartition("┘")[2].splitlines())


def test_lists_pruned_parameters_and_sums_up_the_others():
    shown = text(attached(exclude="@last"))
    assert rows(shown) == {"body.0.weight": "by rank"}
    norm, biases, table, last = 2 * 16, 16 + 3, 20, 48
    assert (
        f"dense: {norm + biases + table + last} weights of 6 parameters: {norm + biases + table} "
        f"only when included by name, {last} excluded by '@last'"
    ) in caption(shown)


def test_layer_targets_are_shown():
    found = rows(text(attached(layers={"body.3": 0.5}, distribution="uniform")))
    assert found["body.0.weight"] == "0.75"
    assert found["body.3.weight"] == "0.5"
    assert found["body.0.weight"] != found["body.3.weight"]


def test_excluded_parameters_are_summed_up():
    shown = text(attached(include=["table.weight", "body.0"]))
    assert rows(shown) == {"table.weight": "by rank", "body.0.weight": "by rank"}
    rest = 2 * 16 + 16 + 3 + 48
    assert f"dense: {rest} weights of 5 parameters: {rest} not included" in caption(shown)


class Deep(Net):
    """Names that differ at their end."""

    def __init__(self):
        super().__init__(SGD)
        inner = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        for name in ("encoder", "transformer_backbone", "pretrained_feature_extractor", "wrapper"):
            inner = nn.ModuleDict({name: inner})
        self.everything = inner
        del self.body


@pytest.mark.parametrize("width", [60, 80, 200])
def test_long_names_are_shortened_on_the_left(width):
    callback = MagnitudePruning(0.75, schedule=OneShot("3it"))
    callback.attach(Deep())
    console = Console(width=width, record=True)
    console.print(render_summary(callback.session, "MagnitudePruning", width))
    shown = console.export_text()
    names = {t.name for t in callback.pruner.targets}
    found = rows(shown)
    assert len(found) == 2
    if width == 200:
        assert set(found) == names
    for name in found:
        assert name.endswith((".0.weight", ".2.weight"))
        assert name.startswith("…") == (width < 200)
        assert any(full.endswith(name.removeprefix("…")) for full in names)
    assert all(len(line) <= width for line in shown.splitlines())


def test_names_with_equal_ends_stay_distinct():
    module = Net(SGD)
    tail = "the_same_long_tail_of_both_of_these_names_here"
    module.body = nn.Sequential()
    for first in ("a", "b"):
        module.body.append(nn.ModuleDict({first: nn.ModuleDict({tail: nn.Linear(6, 6)})}))
    callback = MagnitudePruning(0.5)
    callback.attach(module)
    console = Console(width=60, record=True)
    console.print(render_summary(callback.session, "MagnitudePruning", 60))
    shown = console.export_text()
    assert len(rows(shown)) == 2, "one line each"
    assert all(len(line) <= 60 for line in shown.splitlines())


@pytest.mark.parametrize("keep", [True, False])
def test_memory_of_removed_values_is_shown(keep):
    assert ("unprune" in text(attached(keep_removed=keep))) == keep


def test_summary_and_plan_are_printed_at_the_start(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    pruning = MagnitudePruning(0.75, begin="2it", end="10it", every="4it")
    fit(Mixed(), pruning, enable_model_summary=True)
    shown = capsys.readouterr().out
    assert "MagnitudePruning: 144 prunable weights" in shown
    assert "2 events, from step 6 to step 10, to sparsity 0.75 (global)" in shown


@pytest.mark.parametrize("summary", [True, False])
@pytest.mark.parametrize("bar", [True, False])
def test_summary_does_not_depend_on_lightnings_model_summary(summary, bar, capsys):
    fit(Mixed(), MagnitudePruning(0.75), max_epochs=20, enable_model_summary=summary,
        enable_progress_bar=bar)  # fmt: skip
    assert capsys.readouterr().out.count("prunable weights") == 1


def test_summary_is_silenced_with_lightnings_log(capsys, caplog):
    with caplog.at_level("WARNING", logger="lightning.pytorch.utilities.rank_zero"):
        fit(Mixed(), MagnitudePruning(0.75), max_epochs=20)
    assert "prunable weights" not in capsys.readouterr().out


def test_frozen_layers_are_marked_and_pruned():
    callback, module = MagnitudePruning(0.75, schedule=OneShot("3it")), Mixed()
    module.body[0].weight.requires_grad_(False)
    fit(module, callback, max_steps=5, max_epochs=-1)
    found = rows(text(callback))
    assert found["body.0.weight"] == "by rank, frozen"
    assert found["body.3.weight"] == "by rank"
    assert int((module.body[0].weight == 0).sum()) == int((~callback.masks["body.0.weight"]).sum())
    assert not callback.masks["body.0.weight"].all()


class Recurrent(Net):
    """A network with 60 % of its parameters in an embedding."""

    def __init__(self):
        super().__init__(SGD)
        self.table = nn.Embedding(60, 4)


def test_the_prunable_share_is_logged(caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        attached()
    parameters = sum(p.numel() for p in Mixed().parameters())
    line = f"prunable: 144 of {parameters} parameters ({144 / parameters:.1%})"
    assert line in caplog.text


def test_large_dense_share_causes_a_warning_with_the_names():
    with pytest.warns(UserWarning, match=r"table\.weight \(240\)"):
        fit(Recurrent(), MagnitudePruning(0.75, schedule=OneShot("3it")), max_steps=5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*leaves.*dense.*")
        chosen = MagnitudePruning(0.75, schedule=OneShot("3it"), exclude=["table.weight"])
        fit(Recurrent(), chosen, max_steps=5)
