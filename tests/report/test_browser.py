# SPDX-License-Identifier: MIT
"""The page in a real browser: hovering, sorting, filtering, dark mode, narrow screen."""

import csv
import itertools
from xml.etree import ElementTree

import pytest
from fake_results import result, write
from selenium.webdriver.support.ui import Select

from regrow.report import write_report

METRICS = "epoch,step,train/loss,val/accuracy\n0,20,,0.5\n1,40,0.7,\n1,41,,0.8\n2,60,,0.9\n"
EVENTS = [{"kind": "prune", "step": 40, "epoch": 1, "after": 0.45}]
EVENTS += [{"kind": "rollback", "step": 50, "epoch": 2, "after": 0.9}]
EVIL = "+evil=<script>document.title='broken'</script><b>bold</b>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two methods of three sparsities and three seeds; one job failed."""
    top = tmp_path_factory.mktemp("outputs")
    level = {"sparsity": 0.3, "test_accuracy": 0.96, "epoch": 1}
    grid = itertools.product(("gmp", "imp"), (0.5, 0.8, 0.9), range(3))
    for index, (method, sparsity, seed) in enumerate(grid):
        accuracy = 0.97 - sparsity / 10 - (method == "imp") / 100 + seed / 500
        content = result(method, sparsity, seed, accuracy, control=0.97 + seed / 1000)
        content |= {"levels": [level], "history": EVENTS, "seconds": 100 - index}
        content["overrides"].append(EVIL)
        write(top / method / f"{sparsity}" / f"seed={seed}", content, METRICS)
    (top / "lost").mkdir()
    (top / "lost" / "failed.json").write_text('{"error": "DataError", "message": "no such file"}')
    write_report(top)
    return top


@pytest.fixture
def page(chromium, folder):
    chromium.open(folder / "report.html")
    yield chromium
    assert chromium.troubles() == []


def column(page, name):
    """The texts of a column of the table, from top to bottom."""
    found = page.js(
        "const head = [...document.querySelectorAll('#table th')];"
        "const place = head.findIndex((cell) => cell.dataset.name === arguments[0]);"
        "const rows = [...document.querySelectorAll('#table tbody tr')];"
        "return [place, rows.map((row) => row.cells[place]?.innerText)]",
        name,
    )
    assert found[0] >= 0, name
    return found[1]


def place_of(page, trace, point):
    """Where a point lies on the plot, in pixels of it."""
    return page.js(
        "const p = document.getElementById('plot'), {xaxis, yaxis} = p._fullLayout;"
        "const t = p.data.find(t => t.name === arguments[0]), i = arguments[1];"
        "return [xaxis._offset + xaxis.d2p(t.x[i]), yaxis._offset + yaxis.d2p(t.y[i])]",
        trace,
        point,
    )


def pointed_at(page, trace, point):
    (plot,) = page.find("#plot")
    page.hover(plot, *place_of(page, trace, point))
    page.until(lambda: page.find("#plot .hoverlayer .hovertext"))
    return page.js("return document.querySelector('#plot .hoverlayer').textContent")


def test_browser_reports_errors_and_missing_files(chromium, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<html data-ready><script>console.error('a word')</script><img src='missing.png'>"
        "<script src='http://127.0.0.1:9/x.js'></script></html>"
    )
    chromium.open(bad)
    said = " ".join(chromium.troubles())
    assert "a word" in said
    assert "missing.png" in said
    assert "asked for http://127.0.0.1:9/x.js" in said


def test_hovering_a_point_shows_its_overrides(page):
    text = pointed_at(page, "gmp", 1)
    assert "pruning.sparsity=0.8" in text
    assert "top-1 89.20 ± 0.20 % (n = 3)" in text
    assert "seeds: 0, 1, 2" in text
    assert "<script>document.title=" in text  # as it was written, not as markup
    assert page.driver.title != "broken"


def test_dense_baseline_shows_its_spread(page):
    text = pointed_at(page, "dense, 20 epochs, seeds 0, 1, 2", 20)
    assert "top-1 97.10 ± 0.10 % (n = 3)" in text
    assert "of: gmp, imp" in text


def test_the_reference_decides_the_differences(page):
    """By hand: gmp has 92, 89 and 88 % at 50, 80 and 90 % sparsity; imp one point less."""
    note = "return document.getElementById('reference-note').textContent"
    assert "the mean of dense, 20 epochs, seeds 0, 1, 2" in page.js(note)
    dense = 100 * (0.97 + 0.971 + 0.972) / 3
    own = [float(text) for text in column(page, "accuracy")]
    found = [float(text) for text in column(page, "difference")]
    assert found == pytest.approx([accuracy - dense for accuracy in own], abs=0.006)
    # deviations 0.2 and 0.1 of three seeds: sqrt(0.04 / 3 + 0.01 / 3) = 0.13
    assert "Top-1: -7.90 ± 0.13 points against dense, 20 epochs" in pointed_at(page, "gmp", 1)
    Select(page.find("#reference")[0]).select_by_visible_text("imp")
    assert "the mean of imp" in page.js(note)
    found = [float(text) for text in column(page, "difference")]
    seeds = [-0.2, 0, 0.2]
    assert found == pytest.approx([1 + s for s in seeds] * 3 + seeds * 3, abs=0.006)
    # sqrt(0.04 / 3 + 0.04 / 3) = 0.16
    assert "Top-1: +1.00 ± 0.16 points against imp" in pointed_at(page, "gmp", 1)
    assert "against" not in pointed_at(page, "imp", 1)
    width = "return document.getElementById('plot').data.find((t) => t.name === 'imp').line.width"
    assert page.js(width) == 5


def test_axes_can_be_changed(page):
    title = "return document.querySelector('#plot .xtitle').textContent"
    assert page.js(title).startswith("Sparsity")
    page.click("#axes [data-name=compression]")
    page.until(lambda: page.js(title).startswith("Compression"))
    assert page.js("return document.getElementById('plot')._fullLayout.xaxis.type") == "log"
    assert page.find("#axes [aria-pressed=true]")[0].text == "Compression"
    page.click("#axes [data-name=latency]")
    page.until(lambda: page.js(title) == "Median latency, ms")
    assert "latency 1.600 ms" in pointed_at(page, "gmp", 0)
    page.click("#measures [data-name=accuracy_drop]")
    upward = "return document.querySelector('#plot .ytitle').textContent"
    page.until(lambda: page.js(upward).startswith("Change against"))


def test_front_is_marked_and_levels_can_be_shown(page):
    names = "return document.getElementById('plot').data.map(t => t.name ?? '')"
    front = "return document.getElementById('plot').data.find(t => t.name === 'Pareto front').x"
    assert page.js(front) == [50, 80, 90]
    before = len(page.js(names))
    page.click("#show-levels")
    assert len(page.js(names)) == before + 6  # one curve an operating point


def test_clicking_a_heading_sorts(page):
    for name in ("accuracy", "sparsity", "seconds"):
        page.click(f"#table th[data-name={name}] button")
        values = [float(text) for text in column(page, name)]
        assert len(values) == 18
        assert values == sorted(values)
        page.click(f"#table th[data-name={name}] button")
        values = [float(text) for text in column(page, name)]
        assert values == sorted(values, reverse=True)
    (cell,) = page.find("#table th[data-name=seconds]")
    assert cell.get_attribute("aria-sort") == "descending"
    page.click("#table th[data-name=folder] button")
    assert column(page, "folder") == sorted(column(page, "folder"))


def test_keyboard_sorts(page):
    (button,) = page.find("#table th[data-name=accuracy] button")
    button.send_keys("\n")
    values = [float(text) for text in column(page, "accuracy")]
    assert values == sorted(values)


def test_filter_narrows_the_table(page):
    (box,) = page.find("#filter")
    box.send_keys("IMP sparsity=0.8")
    page.until(lambda: len(column(page, "method")) == 3)
    assert set(column(page, "method")) == {"imp"}
    assert set(column(page, "sparsity")) == {"80.00"}
    assert page.find("#count")[0].text == "3 of 36 rows"
    box.send_keys(" nothing")
    page.until(lambda: column(page, "method") == [])


def test_the_table_has_numbers_on_the_right_and_units(page):
    (cell,) = page.find("#table th[data-name=accuracy]")
    assert cell.text.split() == ["Top-1", "%"]
    aligned = "return getComputedStyle(document.querySelector('#table td.number')).textAlign"
    assert page.js(aligned) == "right"
    assert "Parameters" in page.js("return document.getElementById('table').innerText")
    assert "Model Net(width=16)" in page.find("#constant")[0].text


def test_a_click_selects_a_table_of_means(page):
    page.click("#means summary")
    page.click("#means pre:first-of-type")
    selected = page.js("return getSelection().toString()")
    assert selected.startswith("| Method |")
    assert "| 80.00 | 89.20 ± 0.20 |" in selected
    assert selected.strip().count("\n") == 1 + 6 + 1  # the rule, six points, the dense baseline


def test_download_equals_results_csv(page, folder):
    page.click("#download")
    saved = page.profile / "results.csv"
    page.until(saved.is_file)
    with (folder / "results.csv").open(newline="") as one, saved.open(newline="") as other:
        expected, found = list(csv.DictReader(one)), list(csv.DictReader(other))
    assert len(found) == 36
    for row, same in zip(expected, found, strict=True):
        for name, text in row.items():
            try:
                assert float(text) == float(same[name])
            except ValueError:
                assert text == same[name]


def test_a_run_shows_its_layers_and_its_events(page):
    Select(page.find("#which")[0]).select_by_visible_text("gmp, 80 %, seed 1")
    layers = page.js("return document.getElementById('layers').data[0].x")
    assert layers == [pytest.approx(60), pytest.approx(20)]  # conv 40 %, fc 80 % pruned
    curves = page.js("return document.getElementById('curves').data.map(t => [t.name, t.x, t.y])")
    assert curves[0] == ["train/loss", [40], [0.7]]
    assert curves[1] == ["val/accuracy", [20, 41, 60], [50, 80, 90]]
    assert curves[2][1] == [0, 40, 50, 60]
    assert len(page.js("return document.getElementById('curves').layout.shapes")) == 2
    text = page.js("return document.getElementById('curves').data[2].hovertext[2]")
    assert text == "rollback at step 50, epoch 2: sparsity 90.00 %"
    assert "pruning.sparsity=0.8" in page.find("#facts")[0].text


def test_two_runs_show_exactly_the_settings_that_differ(page):
    gmp, imp = page.js(
        "return [...document.querySelectorAll('#table td input')]"
        ".map((box) => [box.ariaLabel, box])"
    )[4:14:9]
    assert [gmp[0], imp[0]] == ["gmp, 80 %, seed 1", "imp, 80 %, seed 1"]
    page.js("for (const box of arguments) box.click()", gmp[1], imp[1])
    rows = page.js(
        "return [...document.querySelectorAll('#settings tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.innerText))"
    )
    assert rows == [["Settings that differ", "A", "B"], ["pruning.name", '"gmp"', '"imp"']]
    assert "A: gmp, 80 %, seed 1" in page.find("#facts")[0].text
    assert "B: imp, 80 %, seed 1" in page.find("#facts")[0].text
    layers = page.js("return document.getElementById('layers').data.map((t) => t.x)")
    assert layers == [[pytest.approx(60), pytest.approx(20)]] * 2
    names = page.js("return document.getElementById('curves').data.map((t) => t.name)")
    single = ["train/loss", "val/accuracy", "sparsity, events"]
    assert names == [f"{run}: {name}" for run in "AB" for name in single]
    Select(page.find("#other")[0]).select_by_visible_text("gmp, 50 %, seed 0")
    differing = "return [...document.querySelectorAll('#settings td:first-child')]"
    assert page.js(f"{differing}.map((cell) => cell.innerText)") == [
        *("data.seed", "pruning.sparsity", "seed")
    ]
    Select(page.find("#other")[0]).select_by_visible_text("no other")
    assert not page.find("#settings")[0].is_displayed()
    checked = page.js("return document.querySelectorAll('#table td input:checked').length")
    assert checked == 1


def test_each_figure_is_saved_as_svg_in_light_colours(chromium, folder):
    chromium.open(folder / "report.html", dark=True)
    for figure, word in (("plot", "imp"), ("layers", "conv.weight"), ("curves", "val/accuracy")):
        chromium.click(f".svg[data-plot={figure}]")
        saved = chromium.profile / f"regrow-{figure}.svg"
        chromium.until(saved.is_file)
        text = saved.read_text()
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert word in text
        assert "fill: rgb(28, 36, 48)" in text  # the ink of light mode
        assert "fill: rgb(230, 234, 240)" not in text
    assert not chromium.find(":root.light")
    assert chromium.troubles() == []


def test_print_is_light_and_unfolded_without_controls(chromium, folder):
    chromium.open(folder / "report.html", dark=True)
    look = (
        "return [getComputedStyle(document.getElementById('plot')).width,"
        "document.getElementById('plot')._fullLayout.width,"
        "document.getElementById('plot')._fullLayout.font.color,"
        "document.querySelectorAll('details[open]').length]"
    )
    before = chromium.js(look)
    chromium.js(
        "matchMedia('print').addEventListener('change', (event) => { if (event.matches) {"
        "const seen = [...document.querySelectorAll('button, input, select')];"
        "window.printed = [getComputedStyle(document.documentElement).getPropertyValue('--page'),"
        "seen.filter((one) => one.checkVisibility() && !one.closest('th')).length,"
        "document.querySelectorAll('details:not([open])').length,"
        "document.getElementById('plot')._fullLayout.width] } })"
    )
    assert chromium.print().startswith(b"%PDF")
    assert chromium.js("return window.printed") == ["#f4f5f7", 0, 0, 960]
    chromium.until(lambda: chromium.js(look) == before)
    assert chromium.troubles() == []


def test_failed_job_is_shown_with_its_reason(page):
    assert "DataError: no such file" in page.find("#without-result")[0].text


@pytest.mark.parametrize("width", [320, 390])
def test_narrow_screen_does_not_scroll_sideways(chromium, folder, width):
    chromium.open(folder / "report.html", width=width, height=844)
    wide, inner = chromium.js("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= inner == width
    plot = chromium.js("return document.querySelector('#plot .main-svg').clientWidth")
    assert plot <= width
    assert chromium.troubles() == []


def test_dark_mode_has_a_dark_background(chromium, folder):
    colour = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    letters = "return document.getElementById('plot')._fullLayout.font.color"
    chromium.open(folder / "report.html")
    light, ink = chromium.js(colour), chromium.js(letters)
    chromium.open(folder / "report.html", dark=True)
    assert sum(chromium.js(colour)) < 150 < 600 < sum(light)
    assert chromium.js(letters) != ink
    assert chromium.troubles() == []
