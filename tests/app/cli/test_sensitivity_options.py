# SPDX-License-Identifier: MIT
"""The options of `regrow sensitivity`: mistakes give a one-line error at once."""

from pathlib import Path

import pytest

from regrow.app.cli.parser import Parser, read_scan_options
from regrow.sensitivity_analysis.scan_options import ScanOptions
from regrow.sensitivity_analysis.scan_table import format_points
from regrow.utils.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "here.ckpt").touch()


HERE = "run/here.ckpt"


def read_options(words):
    return read_scan_options(Parser("regrow sensitivity"), words)


def test_defaults():
    assert read_options([HERE]) == ScanOptions(
        Path(HERE), Path("run"), (0.3, 0.5, 0.7, 0.9), "weights", None, None, 0.01, None, None
    )


def test_options_are_read_with_space_or_equals_sign():
    words = "--sparsities 0.9,.5,0.9 --by=channels --criterion l1 --samples=20 --max-drop 0.5 "
    words += f"{HERE} --include a.*,b --exclude=@last --out there"
    assert read_options(words.split()) == ScanOptions(
        Path(HERE), Path("there"), (0.5, 0.9), "channels", "l1", 20, 0.005, ("a.*", "b"), ("@last",)
    )


@pytest.mark.parametrize(("drop", "words"), [("1", "1 point"), ("0.5", "0.5 points")])
def test_drop_is_printed_in_points(drop, words):
    assert format_points(read_options([HERE, "--max-drop", drop]).max_drop) == words


MISTAKES = [
    ((), "required: checkpoint"),
    ((HERE, HERE), "no option 'run/here.ckpt': leave it out"),
    (("nowhere.ckpt",), "no file 'nowhere.ckpt'"),
    ((HERE, "--sparsity", "0.5"), "no option '--sparsity': did you mean '--sparsities'"),
    ((HERE, "-s"), "no option '-s'"),
    ((HERE, "--sparsities"), "argument --sparsities: expected one argument"),
    ((HERE, "--by="), "--by needs a value"),
    ((HERE, "--by", "--samples=3"), "argument --by: expected one argument"),
    ((HERE, "--samples", "1", "--samples", "2"), "--samples is given twice"),
    ((HERE, "--sparsities", "50,90"), "--sparsities must be in [0, 1), got 50.0: write 0.5"),
    ((HERE, "--sparsities", "0"), "--sparsities must be above 0"),
    ((HERE, "--sparsities", "0.5;0.7"), "--sparsities takes numbers such as 0.5, got '0.5;0.7'"),
    ((HERE, "--by", "channel"), "--by must be one of channels, weights, got 'channel'"),
    ((HERE, "--samples", "0"), "--samples must be a whole number of at least 1, got 0"),
    ((HERE, "--samples", "many"), "--samples takes a whole number such as 1000, got 'many'"),
    (
        (HERE, "--max-drop", "0.01"),
        "in points of accuracy, got 0.01: write --max-drop 1",
    ),
    (
        (HERE, "--max-drop", "100"),
        "in points of accuracy, got 100: write --max-drop 1",
    ),
    ((HERE, "--max-drop", "0"), "--max-drop must be a number above 0"),
    ((HERE, "--max-drop", "nan"), "--max-drop must be a number above 0"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_wrong_options_raise_with_their_name(words, message):
    with pytest.raises(ConfigError) as refused:
        read_options(words)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("command", ["sensitivity", "free", "inspect", "doctor", "export"])
def test_wrong_options_give_a_one_line_error_before_torch_is_imported(python, command):
    program = (
        "import sys\n"
        "from regrow.app.cli.main import main\n"
        f"assert main([{command!r}, 'nowhere.ckpt']) == 1\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: no file 'nowhere.ckpt'")
    assert len(done.stderr.splitlines()) == 1
