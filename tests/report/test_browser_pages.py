# SPDX-License-Identifier: MIT
"""Other pages in a browser: several tasks, many rows, only failed jobs."""

import pytest
from fake_results import result, write
from selenium.webdriver.support.ui import Select

from regrow.report import write_report

TOP5 = {"dense": {"accuracy_top5": 0.999}, "pruned": {"accuracy_top5": 0.99}}


@pytest.fixture
def opened(chromium, tmp_path):
    """Write a report of results, open it, and check that the page has no errors."""

    def open_(*contents):
        for index, content in enumerate(contents):
            write(tmp_path / f"job{index}", content)
        write_report(tmp_path)
        chromium.open(tmp_path / "report.html")
        return chromium

    yield open_
    assert chromium.troubles() == []


def traces(page):
    return page.js("return document.getElementById('plot').data.map((t) => t.name)")


def test_tasks_are_shown_one_at_a_time(opened):
    wide = {"model": {"width": 32}}
    page = opened(result("gmp"), result("gmp", seed=1), result("imp", setting=wide, **TOP5))
    assert {"gmp", "imp"} & {*traces(page)} == {"gmp"}
    assert not page.find("#measures [data-name=accuracy_top5]")
    Select(page.find("#task")[0]).select_by_visible_text("Digits · Net(width=32)")
    assert {"gmp", "imp"} & {*traces(page)} == {"imp"}
    page.click("#measures [data-name=accuracy_top5]")
    label = "return document.querySelector('#plot .ytitle').textContent"
    page.until(lambda: "top-5" in page.js(label))
    page.click("#warnings > summary")
    assert "Different data or models" in page.find("#warnings")[0].text


@pytest.mark.parametrize(
    ("splits", "title"),
    [
        (("test", "test"), "Test accuracy (top-1), %"),
        (("val", "val"), "Validation accuracy (top-1), %"),
        (("test", "val"), "Accuracy (top-1), %"),
    ],
)
def test_vertical_axis_names_the_split(opened, splits, title):
    page = opened(*(result(seed=seed, split=split) for seed, split in enumerate(splits)))
    label = "return document.querySelector('#plot .ytitle').textContent"
    assert page.js(label) == title
    page.click("#measures [data-name=accuracy_drop]")
    page.until(lambda: page.js(label) == "Change against the dense baseline, points")
    once = page.find("#constant")[0].text
    assert (f"Measured on {splits[0]}" in once) == (len({*splits}) == 1)


def test_warnings_are_collapsed_above_the_plot_with_their_number(opened):
    page = opened(result(), result("imp", epochs=30))
    (warnings,) = page.find("#warnings")
    assert warnings.text == "Before you compare: 2 warnings"  # few seeds, other epochs
    assert warnings.rect["y"] + warnings.rect["height"] < page.find("#plot")[0].rect["y"]
    page.click("#warnings > summary")
    assert "Different total epochs" in warnings.text
    assert "Fewer than three seeds" in warnings.text


def test_dense_baselines_are_labelled_in_plot_and_table(opened):
    longer = {"epochs": 30, "setting": {"dense_epochs": 15}, "control": 0.98}
    page = opened(result("gmp", 0.5), result("imp", 0.8, **longer))
    labels = ["dense, 20 epochs, seed 0", "dense, 30 epochs, seed 0"]
    assert traces(page)[:2] == labels
    table = page.find("#table")[0].text
    assert all(label in table for label in labels)
    Select(page.find("#reference")[0]).select_by_visible_text(labels[1])
    bold = "return document.getElementById('plot').data.filter((t) => t.line?.width === 3)[0].name"
    assert page.js(bold) == labels[1]
    Select(page.find("#reference")[0]).select_by_visible_text("gmp")  # at another sparsity
    cells = page.js(
        "const place = [...document.querySelectorAll('#table th')]"
        ".findIndex((cell) => cell.dataset.name === 'difference');"
        "return [...document.querySelectorAll('#table tbody tr')]"
        ".map((row) => row.cells[place].innerText)"
    )
    assert cells == ["0.00", ""]


def test_one_task_needs_no_choice(opened):
    page = opened(result())
    assert not page.find("#task-label")[0].is_displayed()


def test_collapsed_method_does_not_stretch_the_axis(opened):
    page = opened(
        result("gmp", 0.5, accuracy=0.96),
        result("gmp", 0.9, accuracy=0.95),
        result("random", 0.9, accuracy=0.1),
    )
    low, high = page.js("return document.getElementById('plot')._fullLayout.yaxis.range")
    assert 86 < low < 88
    assert 97 < high < 100
    assert "Below the shown range: 1 of 3 points" in page.find("#size")[0].text
    Select(page.find("#within")[0]).select_by_visible_text("everything")
    low, _ = page.js("return document.getElementById('plot')._fullLayout.yaxis.range")
    assert low < 10


def test_levels_are_drawn_if_there_is_no_other_curve(opened):
    levels = [{"sparsity": s, "test_accuracy": 0.9} for s in (0.2, 0.5)]
    page = opened(result("imp", levels=levels))
    assert page.find("#show-levels")[0].is_selected()
    way = page.js(
        "const plot = document.getElementById('plot');"
        "return plot.data.find((t) => t.line?.dash === 'dot' && t.legendgroup).x"
    )
    assert way == [20, 50, 90]


def test_very_many_rows_are_shown_in_part(opened):
    levels = [{"sparsity": i / 1000, "test_accuracy": 0.9} for i in range(600)]
    page = opened(result(levels=levels))
    rows = "return document.querySelectorAll('#table tbody tr').length"
    assert page.js(rows) == 1
    page.click("#table-levels")
    assert page.js(rows) == 500
    assert page.find("#count")[0].text == "601 of 601 rows, first 500 shown"


def test_page_with_failed_jobs_only(chromium, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("{}")
    write_report(tmp_path)
    chromium.open(tmp_path / "report.html")
    assert "the same command resumes it" in chromium.find("#without-result")[0].text
    for part in ("#accuracy", "#results", "#run", "#trouble"):
        assert not chromium.find(part)[0].is_displayed()
    assert chromium.troubles() == []


def test_many_methods_have_distinct_marks(opened):
    page = opened(*(result(f"m{number:02}", accuracy=0.5 + number / 100) for number in range(40)))
    looks = page.js(
        "return document.getElementById('plot').data.filter((t) => /m[0-9]{2}/.test(t.name))"
        ".map((t) => `${t.marker.color} ${t.marker.symbol}`)"
    )
    assert len(looks) == len(set(looks)) == 40
