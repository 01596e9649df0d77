# SPDX-License-Identifier: MIT
"""The files of a report are complete, small and escaped."""

import base64
import csv
import gzip
import html
import importlib.util
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_results import dense_result, result, write

from regrow.report import page, write_report
from regrow.utils.errors import ConfigError, DataError

EVIL = r'<script>alert(1)</script><img src=x onerror=alert(1)>"$data \${data}'
LIMIT = 3_000_000  # of 200 jobs; 6 MB are promised, of however many


def lines(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def data_of(folder):
    text = (folder / "report.html").read_text()
    (found,) = re.findall(r'<script type="text/plain" id="data">(.*?)</script>', text)
    return json.loads(gzip.decompress(base64.b64decode(found)))


def test_both_files_list_every_run(tmp_path):
    for seed in range(2):
        write(tmp_path / "gmp" / f"seed={seed}", result(seed=seed, accuracy=0.9))
    write(tmp_path / "dense", dense_result())
    done = write_report(tmp_path)
    assert done.summary == "3 finished jobs · 2 methods"
    assert [row["folder"] for row in lines(tmp_path)] == ["dense", "gmp/seed=0", "gmp/seed=1"]
    data = data_of(tmp_path)
    assert [series["name"] for series in data["tasks"][0]["series"]] == ["gmp"]
    assert len(data["rows"]) == 3
    assert {path.name for path in tmp_path.iterdir()} == {
        *("gmp", "dense", "results.csv", "report.html")
    }


def test_only_the_given_jobs_are_reported(tmp_path):
    jobs = [write(tmp_path / "jobs" / str(seed), result(seed=seed)) for seed in range(3)]
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    write_report(sweep, [*jobs[:2], tmp_path / "jobs" / "never"])
    assert [row["folder"] for row in lines(sweep)] == ["../jobs/0", "../jobs/1"]
    assert "../jobs/never" in (sweep / "report.html").read_text()
    assert "not started yet" in (sweep / "report.html").read_text()


def test_job_output_is_escaped(tmp_path):
    content = result(EVIL) | {"overrides": [f"recipe={EVIL}", f"+x={EVIL}"], "verdict": EVIL}
    content["layers"] = {EVIL: 0.5}
    write(tmp_path / "job", content, metrics=f"step,val/accuracy {EVIL}\n1,0.5\n")
    (tmp_path / "lost").mkdir()
    failure = {"recipe": EVIL, "overrides": [EVIL], "message": EVIL}
    (tmp_path / "lost" / "failed.json").write_text(json.dumps(failure))
    write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert ["Verdict", EVIL] in data_of(tmp_path)["runs"][0]["facts"]  # whole, as data


def test_jobs_that_failed_are_shown_with_their_reason(tmp_path):
    write(tmp_path / "old", result() | {"format": 99})
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "failed.json").write_text('{"error": "X", "message": "out of memory"}')
    done = write_report(tmp_path)
    assert done.summary == "0 finished jobs · 0 methods · 1 failed · 1 unreadable"
    text = (tmp_path / "report.html").read_text()
    assert "X: out of memory" in text
    assert "has format 99" in text
    assert lines(tmp_path) == []


def test_warnings_are_counted_and_shown(tmp_path):
    write(tmp_path / "a", result())
    [warning] = write_report(tmp_path).warnings
    assert warning.startswith("Fewer than three seeds: ")
    assert "Fewer than three seeds" in (tmp_path / "report.html").read_text()
    for seed in (1, 2):
        write(tmp_path / str(seed), result(seed=seed))
    assert write_report(tmp_path).warnings == ()
    text = (tmp_path / "report.html").read_text()
    assert "No unfair comparison was found" in text


@pytest.mark.parametrize(
    ("splits", "axis", "said"),
    [
        (["test"], "Test accuracy", "All accuracies here are test accuracies"),
        (["val"], "Validation accuracy", "All accuracies here are validation accuracies"),
        (["test", "val"], "Accuracy", 'The column "Measured on" says'),
    ],
)
def test_page_names_the_split_that_was_measured(tmp_path, splits, axis, said):
    for seed, split in enumerate(splits):
        write(tmp_path / str(seed), result(seed=seed, split=split))
    write_report(tmp_path)
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert f"the mean {axis.lower()} over its seeds" in page
    assert said in page
    assert data_of(tmp_path)["measured"] == axis
    assert [row["split"] for row in lines(tmp_path)] == splits
    assert ("Measured on different sets" in page) == (len(splits) > 1)


def test_means_can_be_copied_as_markdown_and_latex(tmp_path):
    for seed in range(3):
        content = result("a_b", seed=seed, accuracy=0.9 + seed / 100)
        write(tmp_path / str(seed), content | {"overrides": ["recipe=digits/a_b", "x=1|2"]})
    write(tmp_path / "c", result("c"))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    markdown, latex = map(html.unescape, re.findall("<pre>(.*?)</pre>", page, re.DOTALL))
    head, rule, *rows = markdown.splitlines()
    assert head.startswith("| Method | Of | Sparsity, % | Top-1, % |")
    assert rule == "|" + " --- |" * (head.count("|") - 1)
    assert rows[0].startswith(r"| a_b x=1\|2 | weights | 90.00 | 91.00 ± 1.00 | -6.00 ± 1.00 |")
    assert len(rows) == 3
    assert r"a\_b x=1|2 & weights & 90.00 & 91.00 ± 1.00 & -6.00 ± 1.00 &" in latex
    assert latex.startswith(r"\begin{tabular}{llrrrrrrr}")
    assert r"\toprule" in latex


def test_missing_folder_or_jobs_raise(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*: write `regrow report outputs`"):
        write_report(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no job below .*`regrow train recipe=digits/gmp`"):
        write_report(tmp_path)


def hide(monkeypatch, package):
    """Make a package appear not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == package else find(n))


def test_without_plotly_the_table_is_written(tmp_path, monkeypatch):
    write(tmp_path / "a", result())
    page.packed_plotly.cache_clear()
    hide(monkeypatch, "plotly")
    with pytest.raises(
        ConfigError, match=r'results.csv is written.*plotly: pip install "regrow\[report\]"'
    ):
        write_report(tmp_path)
    assert len(lines(tmp_path)) == 1
    assert not (tmp_path / "report.html").exists()


def test_without_pandas_there_is_no_report(tmp_path, monkeypatch):
    write(tmp_path / "a", result())
    hide(monkeypatch, "pandas")
    with pytest.raises(ConfigError, match=r'report needs pandas: pip install "regrow\[report\]"'):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_concurrent_writers_leave_whole_files(tmp_path):
    write(tmp_path / "a", result())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_report, [tmp_path] * 8))
    assert (tmp_path / "report.html").read_text().endswith("</html>\n")
    assert len(lines(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "report.html", "results.csv"]


def many(folder, jobs, epochs):
    """Jobs of ten methods, with 50 layers, 20 levels, 200 events and long curves."""
    layers = {f"network.stage{i // 10}.block{i % 10}.conv.weight": 0.9 for i in range(50)}
    levels = [{"sparsity": i / 50, "test_accuracy": 0.9, "epoch": i} for i in range(20)]
    history = [{"kind": "prune", "step": 10 * i, "epoch": i, "after": i / 220} for i in range(200)]
    steps = range(epochs)
    curve = "".join(
        f"{i},{391 * i},{0.123456789 + i / 1e4},,\n{i},,,{2 / (i + 1)},\n" for i in steps
    )
    for job in range(jobs):
        content = result(f"m{job % 10}", 0.5 + job % 50 / 100, seed=job // 50, layers=layers)
        content |= {"levels": levels, "history": history}
        metrics = "epoch,step,val/accuracy,val/loss,train/loss\n" + curve
        write(folder / f"job{job:03d}", content, metrics)


def test_page_of_two_hundred_jobs_stays_small(tmp_path):
    many(tmp_path, 200, epochs=200)
    write_report(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < LIMIT
    assert len(lines(tmp_path)) == 200 * 21


def test_heavy_libraries_are_not_imported_with_the_package(python):
    heavy = {"torch", "numpy", "hydra", "plotly", "pandas", "jinja2"}
    program = f"import sys, regrow.report; print({{*sys.modules}} & {heavy})"
    assert python("-c", program).stdout.strip() == "set()"


def test_report_command_writes_both_files(regrow, tmp_path):
    write(tmp_path / "outputs" / "a", result())
    done = regrow("report", "outputs")
    assert done.returncode == 0, done.stderr
    page, table = Path("outputs") / "report.html", "results.csv"
    assert f"{page} and {table}: 1 finished job · 1 method" in done.stdout
    assert "warnings about what can be compared, see the page:" in done.stdout
    assert "  Fewer than three seeds" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "required: folder (see `regrow report --help`)"),
        (("a", "b"), "no option 'b': leave it out"),
        (("nothing",), "no folder 'nothing': write `regrow report outputs`"),
        ((".",), "no job below '.'"),
    ],
)
def test_report_command_errors_say_what_to_write(regrow, words, said):
    done = regrow("report", *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
