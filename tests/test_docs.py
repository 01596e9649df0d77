# SPDX-License-Identifier: MIT
"""README and docs: programs and commands run, and what is named exists and matches."""

import ast
import csv
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

import regrow
import regrow.channels
import regrow.data
from regrow.app.config.recipes import register
from regrow.app.training.preflight import check_settings
from regrow.callbacks.core import compatibility
from regrow.utils.paths import config_dir

CHECKOUT = Path(__file__).resolve().parents[1]
DOCS = CHECKOUT / "docs"
TABLE = DOCS / "compatibility.md"
DOCUMENTS = sorted([*DOCS.rglob("*.md"), *CHECKOUT.glob("*.md")])
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
# Their own tests run them: tests/app/test_your_own.py, tests/test_extending.py, and one below.
RUN_ELSEWHERE = {"your_own.md", "extending.md", "distributed.md"}
NEEDED = {"int8": "torchao"}  # which has no release for the oldest torch that regrow takes


def blocks(page, languages="python|yaml|bash"):
    """(language, line, text) of the fenced blocks of a page, in order."""
    text = page.read_text()
    for found in re.finditer(rf"^( *)```({languages})\n(.*?)^\1```", text, re.S | re.M):
        lines = [line.removeprefix(found[1]) for line in found[3].splitlines(keepends=True)]
        yield found[2], text[: found.start()].count("\n") + 1, "".join(lines)


def file_name(text):
    """The name in a first line such as `# digits.py`, by which readers save a block."""
    found = re.match(r"# ([\w/]+\.(?:py|yaml))\n", text)
    return found and found[1]


def commands(program):
    """The words after `program` in the commands of all documents."""
    return [*_commands(program)]


def _commands(program):
    for page in DOCUMENTS:
        for _, line, text in blocks(page, "bash|sh"):
            for command in re.findall(
                rf"^(?:time )?{program} (.*)", text.replace("\\\n", " "), re.M
            ):
                words = shlex.split(command, comments=True)
                yield pytest.param(words, id=f"{page.relative_to(CHECKOUT)}:{line}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder with the module of the tour, from which modules are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    [text] = [text for *_, text in blocks(DOCS / "tour.md") if file_name(text) == "digits.py"]
    (tmp_path / "digits.py").write_text(text)
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in (
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def pages_with_programs():
    """The pages of which blocks are run here."""
    pages = [page for page in DOCUMENTS if page.name not in RUN_ELSEWHERE]
    return [page for page in pages if any(kind != "bash" for kind, *_ in blocks(page))]


@pytest.mark.parametrize("page", pages_with_programs(), ids=lambda page: page.stem)
def test_programs_of_a_page_run_in_order(page, folder, monkeypatch):
    if page.stem in NEEDED:
        pytest.importorskip(NEEDED[page.stem])
    names = {"__name__": page.stem}
    for language, line, text in blocks(page):
        if name := file_name(text):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        elif language == "python":
            exec(compile("\n" * line + text, page, "exec"), names)
        elif language == "yaml":
            assert yaml.safe_load(text)
        else:
            for command in re.findall(r"^python (?!examples|benchmarks).*", text, re.M):
                words = shlex.split(command, comments=True)
                if (folder / words[1]).exists():
                    monkeypatch.setattr(sys, "argv", words[1:])
                    runpy.run_path(words[1], run_name="__main__")


def first_value(word):
    """An override without a sweep, as the first job of the sweep has it."""
    if word.startswith("-"):
        return word
    [override] = OverridesParser.create().parse_overrides([word])
    value = override.value()
    if override.is_choice_sweep():
        value = next(override.sweep_string_iterator())
    elif override.is_interval_sweep():
        value = value.start
    else:
        return word
    return f"{override.get_key_element()}={value}"


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp.py", "fsdp2.py"])
def test_programs_for_two_devices_run(name, folder, python):
    for _, _, text in blocks(DOCS / "how_to" / "distributed.md", "python"):
        (folder / file_name(text)).write_text(text)
    done = python(name)
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines() if line[:2] in ("0 ", "1 "))
    assert {*found} == {"0", "1"}
    assert float(found["0"]) == float(found["1"]) == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("words", commands("regrow"))
def test_commands_have_settings_that_exist(words):
    """The first job of `regrow train` and `regrow plan` is composed, and its settings checked."""
    verb, *words = words
    assert verb in (
        "train",
        "plan",
        "inspect",
        "doctor",
        "recipes",
        "report",
        "export",
        "free",
        "auto",
        "sensitivity",
        "-h",
    )
    if verb not in ("train", "plan") or "-sc" in words:
        return
    register()
    jobs = [word for word in map(first_value, words) if not word.startswith("-")]
    if not any("=PATH" in word or "_target_" in word or word.endswith(".yaml") for word in jobs):
        jobs += ["recipe=digits/gmp"] * (not any(word.startswith("recipe=") for word in jobs))
        with initialize_config_dir(version_base="1.3", config_dir=str(config_dir("conf") / "app")):
            cfg = compose("train", jobs)
            cfg.trainer.update(accelerator="cpu", devices=1)  # this machine may lack those devices
            check_settings(cfg)


@pytest.mark.parametrize("words", commands("make"))
def test_make_has_the_targets(words):
    targets = re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text(), re.M)
    assert {word for word in words if "=" not in word and not word.startswith("-")} <= {*targets}


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT / "src"))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}})
    assert client.execute().cells


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_with_their_plots(path):
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)


def public_names():
    """Every public name, with its package."""
    for package in (regrow, regrow.channels, regrow.data):
        yield from (f"{package.__name__}.{name}" for name in package.__all__)


def test_the_reference_has_every_public_name_once():
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    shown = re.findall(r"^::: (\S+)", pages, re.M)
    assert len(shown) == len({*shown})
    assert {*public_names()} <= {*shown}


def test_every_option_of_pruning_is_on_the_page_of_a_method():
    pages = "".join(page.read_text() for page in (DOCS / "methods").glob("*.md"))
    options = {path.stem for path in (config_dir("conf") / "shared" / "pruning").glob("*.yaml")}
    assert {option for option in options if f"`{option}`" not in pages} <= {"none"}


def test_the_site_lists_every_page():
    listed = re.findall(r"[\w/]+\.(?:md|ipynb)", (CHECKOUT / "mkdocs.yml").read_text())
    files = [*DOCS.rglob("*.md"), *NOTEBOOKS]
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in files)


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
    is_slow = any(ast.unparse(mark) == "pytest.mark.slow" for mark in found.decorator_list)
    assert "(slow)" in feature or not is_slow, "the test is slow, it does not say so"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in link:
            assert (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_files_that_are_there(document):
    for path in re.findall(r"(?:python |`)((?:benchmarks|examples)/\w+\.py)", document.read_text()):
        assert (CHECKOUT / path).exists(), path


def figures_of(page):
    """{(recipe, sparsity): cell} of a page's tables of the comparison."""
    lines = page.read_text().splitlines()
    cells = [[cell.strip(" `|") for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    heads = [row for row in cells if row[:1] == ["recipe"]]
    return {
        (row[0], column): cell
        for row in cells
        if heads and row[0].startswith("lenet300")
        for column, cell in zip(heads[0], row, strict=True)
        if column.endswith("%")
    }


def test_tables_show_the_figures_of_the_comparison():
    """All means and spreads of the csv on its page, and no others on the pages of methods."""
    with (DOCS / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 19
    assert {row["seeds"] for row in rows} == {"3"}
    measured = {
        (row["recipe"].split("/")[1], f"{float(row['sparsity']):.0%}"): (
            f"{row['accuracy %']} ± {row['sd']}"
        )
        for row in rows
    }
    assert figures_of(DOCS / "compare.md") == measured
    for page in (DOCS / "methods").glob("*.md"):
        assert figures_of(page).items() <= measured.items(), page.name


def test_combinations_that_raise_are_those_of_the_code():
    text = TABLE.read_text()
    section = text.partition("## Combinations that raise an error")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    rows = (*compatibility.TABLE, compatibility.FREEZING)
    assert lines == [f"| {row.name} | {row.message} |" for row in rows]
