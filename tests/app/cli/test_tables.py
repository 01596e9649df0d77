# SPDX-License-Identifier: MIT
"""Tables of the command and of a fit, at 80 and 120 columns, as they were looked at."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from regrow import MagnitudePruning, diagnose
from regrow.app.cli.doctor_command import diagnosis_tables
from regrow.app.experiment.plan import plan
from regrow.callbacks.core.summary import render_summary
from regrow.utils.display import align_columns, shorten_names

GOLDEN = Path(__file__).with_name("tables")
WIDTHS = pytest.mark.parametrize("width", [80, 120])


def check(name, width, shown):
    """Compare with the file; a changed table is looked at, and its file is written anew."""
    lines = [line.rstrip() for line in shown.splitlines()]
    assert all(len(line) <= width for line in lines)
    assert lines == (GOLDEN / f"{name}-{width}.txt").read_text().splitlines()


@WIDTHS
def test_plan(job, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    plan(job("recipe=digits/gmp"))
    check("plan", width, capsys.readouterr().out)


@WIDTHS
def test_summary_of_a_transformer(width):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.ModuleDict({"backbone": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)})
    callback = MagnitudePruning(0.5)
    callback.attach(nn.ModuleDict({"pretrained_feature_extractor": model}))
    console = Console(width=width, record=True)
    console.print(render_summary(callback.session, "MagnitudePruning", width))
    check("summary", width, console.export_text())


@WIDTHS
def test_diagnosis(width):
    """A dense transformer layer, and a convolution at 2:4 with channels that are not aligned."""
    layer = nn.TransformerEncoderLayer(64, 2, 96, batch_first=True)
    stem = nn.Sequential(nn.Conv1d(4, 28, 5, padding=2), nn.ReLU(), nn.Conv1d(28, 64, 1))
    for weight in (stem[0].weight, stem[2].weight):
        weight.data[:, ::2] = 0
    layer.linear2.weight.data[:, 8:] = 0
    model = nn.Sequential(stem, Transposed(), layer)
    console = Console(width=width, record=True)
    for table in diagnosis_tables(diagnose(model, torch.zeros(1, 4, 16))):
        console.print(table)
    check("diagnosis", width, console.export_text())


class Transposed(nn.Module):
    def forward(self, x):
        return x.mT


def test_shortened_names_are_distinct_and_fit():
    """Of names of many forms: those that can be told apart within the width fit it."""
    generator = torch.Generator().manual_seed(0)
    for width in (12, 20, 40):
        for _ in range(50):
            parts = torch.randint(0, 12, (6, 5), generator=generator).tolist()
            names = sorted({".".join(f"block{n}" for n in row) for row in parts})
            shortened = shorten_names(names, width)
            assert len({*shortened}) == len(names)
            if shortened != names:
                assert all(len(name) <= width for name in shortened)


def test_columns_are_aligned():
    assert align_columns([("name", "n"), ("fc", "10")]) == "name  n\nfc    10"
