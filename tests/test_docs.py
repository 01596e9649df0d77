# SPDX-License-Identifier: MIT
"""Files, tests and tables that the documents name exist and match."""

import ast
import csv
import re
from pathlib import Path

import pytest

from regrow.callbacks.core.compatibility import describe_table

CHECKOUT = Path(__file__).resolve().parents[1]
TABLE = CHECKOUT / "docs" / "compatibility.md"
DOCUMENTS = sorted([*(CHECKOUT / "docs").glob("*.md"), *CHECKOUT.glob("*.md")])


def rows():
    """(feature, test) of every row of the table."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(row[0], row[-1]) for row in cells if len(row) == 3 and row[-1] != "shown by"]


@pytest.mark.parametrize(("feature", "test"), rows(), ids=lambda text: text[:60])
def test_every_row_names_a_test(feature, test):
    path, name = test.split("::")
    tree = ast.parse((CHECKOUT / "tests" / path).read_text())
    [found] = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    marks = ast.unparse(ast.Module([*tree.body[:20]], [])) + "".join(
        map(ast.unparse, found.decorator_list)
    )
    assert ("slow" not in feature) or "slow" in marks, "it says slow, the test is not"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in link:
            assert (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_files_that_are_there(document):
    for path in re.findall(r"(?:python |`)((?:benchmarks|examples)/\w+\.py)", document.read_text()):
        assert (CHECKOUT / path).exists(), path


def test_the_comparison_shows_its_figures():
    """Every mean and spread of the csv stands in the table, in the column of its sparsity."""
    lines = (CHECKOUT / "docs" / "compare.md").read_text().splitlines()
    cells = [[cell.strip(" `|") for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    [head] = [row for row in cells if row[:1] == ["recipe"]]
    shown = {
        (row[0], column): cell
        for row in cells
        if row[0].startswith("lenet300")
        for column, cell in zip(head, row, strict=True)
    }
    with (CHECKOUT / "docs" / "compare.csv").open() as file:
        figures = list(csv.DictReader(file))
    assert len(figures) == 3 * 19
    for row in figures:
        place = row["recipe"].split("/")[1], f"{float(row['sparsity']):.0%}"
        assert shown[place] == f"{row['accuracy %']} ± {row['sd']}"
        assert row["seeds"] == "3"


def test_combinations_that_raise_are_those_of_the_code():
    text = TABLE.read_text()
    section = text.partition("## Combinations that raise an error")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert lines == [f"| {name} | {message} |" for name, message in describe_table()]
