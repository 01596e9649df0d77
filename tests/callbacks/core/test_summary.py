# SPDX-License-Identifier: MIT
"""The table at the start of a fit says what is pruned, what is not, and why."""

import warnings

import pytest
from rich.console import Console
from tiny_fits import SGD, Net, fit
from torch import nn

from regrow import MagnitudePruning, OneShot
from regrow.callbacks.core.summary import summary_table


class Mixed(Net):
    def __init__(self):
        super().__init__(SGD)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))
        self.table = nn.Embedding(5, 4)


def text(callback):
    console = Console(width=200, record=True)
    console.print(summary_table(callback.session, type(callback).__name__))
    return console.export_text()


def rows(shown):
    """The first and last cell of each row."""
    cells = [[c.strip() for c in line.strip("│┃ ").split("│")] for line in shown.splitlines()]
    return {row[0]: row[-1] for row in cells if len(row) == 4}


def attached(**kw):
    callback = MagnitudePruning(0.75, schedule=OneShot("3it"), **kw)
    fit(Mixed(), callback, max_steps=5, max_epochs=-1)
    return callback


def test_lists_pruned_parameters_and_reasons_for_others():
    found = rows(text(attached(exclude="@last")))
    assert found["body.0.weight"] == "shared"
    assert found["body.3.weight"] == "dense: excluded by '@last'"
    assert found["table.weight"] == "dense: weight of Embedding: only when included by name"
    assert found["body.1.weight"] == "dense: weight of BatchNorm1d: only when included by name"
    assert found["body.0.bias, body.3.bias"] == "dense: bias of Linear: only when included by name"


def test_targets_of_layers():
    found = rows(text(attached(layers={"body.3": 0.5}, distribution="uniform")))
    assert found["body.0.weight"] == "0.75"
    assert found["body.3.weight"] == "0.5"
    assert found["body.0.weight"] != found["body.3.weight"]


def test_included_only():
    found = rows(text(attached(include=["table.weight", "body.0"])))
    assert found["table.weight"] == found["body.0.weight"] == "shared"
    assert found["body.0.bias, body.1.weight and 3 more"] == "dense: not included"


@pytest.mark.parametrize("keep", [True, False])
def test_memory_of_removed_values_is_shown(keep):
    assert ("unprune" in text(attached(keep_removed=keep))) == keep


def test_it_is_printed_at_the_start_with_the_plan(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    pruning = MagnitudePruning(0.75, begin="2it", end="10it", every="4it")
    fit(Mixed(), pruning, enable_model_summary=True)
    shown = capsys.readouterr().out
    assert "MagnitudePruning: 144 prunable weights" in shown
    assert "2 events, from step 6 to step 10, to sparsity 0.75 (global)" in shown
    fit(Mixed(), MagnitudePruning(0.75), max_epochs=20, enable_model_summary=False)
    assert "prunable weights" not in capsys.readouterr().out


def test_frozen_layers_are_marked_and_pruned_all_the_same():
    callback, module = MagnitudePruning(0.75, schedule=OneShot("3it")), Mixed()
    module.body[0].weight.requires_grad_(False)
    fit(module, callback, max_steps=5, max_epochs=-1)
    found = rows(text(callback))
    assert found["body.0.weight"] == "shared, frozen"
    assert found["body.3.weight"] == "shared"
    assert int((module.body[0].weight == 0).sum()) == int((~callback.masks["body.0.weight"]).sum())
    assert not callback.masks["body.0.weight"].all()


class Recurrent(Net):
    """Three fifths of the parameters lie in an embedding."""

    def __init__(self):
        super().__init__(SGD)
        self.table = nn.Embedding(60, 4)


def test_the_prunable_share_is_logged(caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        attached()
    parameters = sum(p.numel() for p in Mixed().parameters())
    line = f"prunable: 144 of {parameters} parameters ({144 / parameters:.1%})"
    assert line in caplog.text


def test_a_large_dense_share_is_warned_of_by_name():
    with pytest.warns(UserWarning, match=r"table\.weight \(240\)"):
        fit(Recurrent(), MagnitudePruning(0.75, schedule=OneShot("3it")), max_steps=5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*leaves.*dense.*")
        chosen = MagnitudePruning(0.75, schedule=OneShot("3it"), exclude=["table.weight"])
        fit(Recurrent(), chosen, max_steps=5)
