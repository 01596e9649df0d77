# SPDX-License-Identifier: MIT
"""`regrow export`: the file computes the same as the checkpoint."""

import gzip
import re

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf

import regrow
from regrow import channels
from regrow.app.cli.export_command import export_checkpoint
from regrow.app.cli.main import main
from regrow.app.experiment.run import train
from regrow.app.models import DigitsCNN
from regrow.app.training.build import build_data, build_module
from regrow.io.checkpoints import KEY
from regrow.utils.errors import ConfigError, DataError, StateError

GMP = ("recipe=digits/gmp", "pruning.every=0.1")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def configured(cfg, tmp_path):
    """A run's folder as Hydra leaves it, with a place for checkpoints."""
    for name in (".hydra", "checkpoints"):
        (tmp_path / "run" / name).mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, tmp_path / "run" / ".hydra" / "config.yaml")
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def cut(job, tmp_path):
    """A checkpoint whose network has lost channels, and that network."""
    cfg = job(*GMP)
    module = build_module(cfg, build_data(cfg))
    plan = channels.prune(module, torch.randn(2, 1, 8, 8), 0.5)
    path = configured(cfg, tmp_path) / "cut.ckpt"
    torch.save({"state_dict": module.state_dict(), KEY: plan.state_dict()}, path)
    return path, module.network.eval()


def row(shown, label):
    [line] = [line for line in shown.splitlines() if line.startswith(f"│ {label} ")]
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_masked_run_exports_to_onnx(job, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    cfg = job(*GMP)
    result = train(cfg)
    configured(cfg, tmp_path)
    capsys.readouterr()
    checkpoint = tmp_path / "run" / result["checkpoint"]
    export_checkpoint(checkpoint, "onnx", tmp_path / "digits.onnx")
    shown = capsys.readouterr().out
    network = DigitsCNN()
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items()})
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx")
    for batch in (1, 9):
        x = torch.randn(batch, 1, 8, 8)
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        right = network.eval()(x).detach().numpy()
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-4 * np.abs(right).max())
    size = (tmp_path / "digits.onnx").stat().st_size
    assert f"{size:,} bytes, checked on 32 test images" in shown
    assert "any batch size" in shown
    dense, pruned = result["dense"], result["pruned"]
    assert row(shown, "parameters")[:2] == [f"{dense['params']:,}", f"{pruned['params']:,}"]
    assert row(shown, "MACs per image")[:2] == [f"{dense['macs']:,}", f"{pruned['macs']:,}"]
    assert row(shown, "bytes on disk") == [f"{size:,}", f"{size:,}", "1.00x fewer"]
    for label in ("1, ms", "32, ms", "1, ms, channels last", "32, ms, channels last"):
        slow, fast, change = row(shown, f"latency of {label}")
        assert float(slow) > 0
        [ratio] = re.findall(r"(?:^|noise: )([\d.]+)x", change)
        assert float(ratio) == pytest.approx(float(slow) / float(fast), rel=0.1, abs=0.01)
    words = re.sub(r"\s+", " ", shown)
    assert "as zeros" in words
    assert "measured beside other processes (load 1000.0 on" in words


def test_cut_network_exports_to_safetensors(cut, tmp_path, capsys):
    path, network = cut
    out = tmp_path / "made" / "digits.safetensors"
    export_checkpoint(path, "safetensors", out)
    shown = capsys.readouterr().out
    again = regrow.load(DigitsCNN, out).eval()
    assert again.fc.in_features == network.fc.in_features < 32
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(again(x), network(x))
    counts = [sum(p.numel() for p in m.parameters()) for m in (DigitsCNN(), network)]
    assert row(shown, "parameters")[:2] == [f"{count:,}" for count in counts]
    safetensors.torch.save_file(
        DigitsCNN().state_dict(), tmp_path / "dense.safetensors", {"format": "pt"}
    )
    sizes = [file.stat().st_size for file in (tmp_path / "dense.safetensors", out)]
    assert row(shown, "bytes on disk")[:2] == [f"{size:,}" for size in sizes]
    assert "bit-identical" in shown
    assert "as zeros" not in shown


def test_cut_network_exports_to_pt2(cut, tmp_path, capsys):
    path, network = cut
    export_checkpoint(path, "pt2", tmp_path / "digits.pt2")
    x = torch.randn(5, 1, 8, 8)
    found = torch.export.load(tmp_path / "digits.pt2").module()(x)
    torch.testing.assert_close(found, network(x))
    dense, small, _ = row(capsys.readouterr().out, "bytes on disk")
    assert int(small.replace(",", "")) == (tmp_path / "digits.pt2").stat().st_size
    assert int(dense.replace(",", "")) > int(small.replace(",", ""))


@pytest.fixture
def masked(job, tmp_path):
    """A checkpoint whose network was pruned to 90 %, and that network."""
    cfg = job(*GMP)
    module = build_module(cfg, build_data(cfg))
    regrow.prune(module, 0.9)
    path = configured(cfg, tmp_path) / "masked.ckpt"
    torch.save({"state_dict": module.state_dict()}, path)
    return path, module.network.eval()


def file_rows(shown):
    """Bytes, share, bytes with gzip, and their share, by file."""
    rows = re.findall(
        r"^│ (all weights|--sparse.*?) +│ +(\S+) │ +(\S+) │ +(\S+) │ +(\S+) │", shown, re.M
    )
    return {
        name: [float(cell.rstrip("%").replace(",", "")) for cell in cells] for name, *cells in rows
    }


def test_sparse_file_restores_the_network_and_is_shown_beside_gzip(masked, tmp_path, capsys):
    path, network = masked
    out, dense = tmp_path / "sparse.safetensors", tmp_path / "dense.safetensors"
    export_checkpoint(path, "safetensors", out, sparse=True)
    shown = capsys.readouterr().out
    again = regrow.load(DigitsCNN, out).state_dict()
    assert all(torch.equal(again[name], value) for name, value in network.state_dict().items())
    safetensors.torch.save_file(network.state_dict(), dense, {"format": "pt"})
    sizes = [dense.stat().st_size, out.stat().st_size]
    assert sizes[1] < sizes[0] / 2
    assert row(shown, "bytes on disk")[:2] == [f"{size:,}" for size in sizes]
    rows = file_rows(shown)
    assert [*rows] == ["all weights", "--sparse"]
    for file, found in zip((dense, out), rows.values(), strict=True):
        size, zipped = file.stat().st_size, len(gzip.compress(file.read_bytes(), 6))
        shares = [round(100 * part / sizes[0], 1) for part in (size, zipped)]
        assert found == [size, shares[0], zipped, shares[1]]
    assert "bit-identical" in shown


def test_rounded_values_are_told_with_their_errors(masked, tmp_path, capsys):
    path, network = masked
    out = tmp_path / "rounded.safetensors"
    assert main(["export", str(path), f"--out={out}", "--sparse", "--values", "int8"]) == 0
    shown = capsys.readouterr().out
    again = regrow.load(DigitsCNN, out).eval()
    pairs = zip(again.state_dict().values(), network.state_dict().values(), strict=True)
    error = max(
        (one - other).abs().max() / other.abs().max() for one, other in pairs if other.any()
    )
    assert f"rounded weights, which differ by {error:.1e} of the largest" in shown
    assert re.search(r"and outputs by [1-9]\.\de-0[1-4] of the largest", shown)
    sizes = [found[0] for found in file_rows(shown).values()]
    assert sizes == sorted(sizes, reverse=True)
    assert len({*sizes}) == 3
    assert sizes[2] == out.stat().st_size


def test_random_images_are_used_without_the_test_set(cut, tmp_path, capsys, monkeypatch):
    from regrow.app.data.digits import Digits

    def missing(self):
        raise DataError("no files")

    monkeypatch.setattr(Digits, "read", missing)
    export_checkpoint(cut[0], "safetensors", tmp_path / "digits.safetensors")
    assert "checked on 32 random images, as the test set is missing" in capsys.readouterr().out


def assert_export_raises(path, tmp_path, error, message):
    with pytest.raises(error, match=message):
        export_checkpoint(path, "safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_checkpoint_without_a_run_raises(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}}, path)
    assert_export_raises(path, tmp_path, ConfigError, "is not from a run of `regrow train`")
    folder = configured(OmegaConf.create({"lr": 0.1}), tmp_path)
    path = folder / "model.ckpt"
    torch.save({"state_dict": {}}, path)
    assert_export_raises(path, tmp_path, ConfigError, r"config\.yaml is not from `regrow train`")
    (folder.parent / ".hydra" / "config.yaml").write_text("a: [")
    assert_export_raises(path, tmp_path, StateError, r"config\.yaml is damaged")


def test_checkpoint_of_another_network_raises(cut, tmp_path):
    path, _ = cut
    whole = torch.load(path, weights_only=True)
    plan = whole.pop(KEY)
    torch.save(whole, path)
    assert_export_raises(path, tmp_path, StateError, "weights are of another network")
    plan["shapes"]["network.fc.weight"] = [7, 7]
    torch.save(whole | {KEY: plan}, path)
    assert_export_raises(path, tmp_path, StateError, "plan is of another model")
    torch.save({"weights": 1}, path)
    assert_export_raises(path, tmp_path, ConfigError, "has no state_dict")
    path.write_bytes(b"PK\x03\x04")
    assert_export_raises(path, tmp_path, StateError, "cannot be read as a checkpoint")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "required: checkpoint"),
        (("a.ckpt", "b.ckpt", "--to", "onnx"), "no option 'b.ckpt': leave it out"),
        (("nowhere.ckpt", "--to", "onnx"), "no file 'nowhere.ckpt'"),
        (("here.ckpt",), "the format is missing: write `regrow export here.ckpt --to onnx`"),
        (("here.ckpt", "--to", "onx"), "--to must be one of onnx, pt2, safetensors, got 'onx'"),
        (("here.ckpt", "--to"), "argument --to: expected one argument"),
        (("here.ckpt", "--out="), "--out needs a value"),
        (("here.ckpt", "--format=onnx"), "no option '--format'"),
    ],
)
def test_wrong_options_give_a_one_line_error(regrow, tmp_path, words, message):
    (tmp_path / "here.ckpt").touch()
    done = regrow("export", *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_command_line_options_select_format_and_path(cut, tmp_path, monkeypatch, capsys):
    path, _ = cut
    assert main(["export", str(path), "--to", "safetensors"]) == 0
    assert path.with_suffix(".safetensors").is_file()
    assert main(["export", f"--out={tmp_path}/a.pt2", str(path)]) == 0
    assert (tmp_path / "a.pt2").is_file()
    capsys.readouterr()
    assert main(["export", str(path), "--to=pt2", f"--out={tmp_path}/a.onnx"]) == 1
    assert "is onnx by its suffix" in capsys.readouterr().err
    assert main(["export", str(path), f"--out={tmp_path}/a.tflite"]) == 1
    assert "names no format" in capsys.readouterr().err


def test_int8_file_keeps_masks_and_is_compared_with_float32(job, tmp_path, capsys):
    cfg = job(*GMP)
    result = train(cfg)
    configured(cfg, tmp_path)
    checkpoint = tmp_path / "run" / result["checkpoint"]
    capsys.readouterr()
    export_checkpoint(checkpoint, "onnx", tmp_path / "digits.onnx", int8=True)
    shown = capsys.readouterr().out.partition("int8.onnx")[2]
    files = [tmp_path / name for name in ("digits.onnx", "digits.int8.onnx")]
    sizes = [file.stat().st_size for file in files]
    assert row(shown, "bytes on disk")[:2] == [f"{size:,}" for size in sizes]
    data = build_data(cfg)
    data.setup("test")
    scores = []
    for file in files:
        session = onnxruntime.InferenceSession(file)
        name = session.get_inputs()[0].name
        right = [
            session.run(None, {name: x.numpy()})[0].argmax(1) == y.numpy()
            for x, y in data.test_dataloader()
        ]
        scores.append(f"{np.concatenate(right).mean():.4f}")
    assert row(shown, "test accuracy")[:2] == scores
    assert scores[0] == f"{result['pruned']['accuracy']:.4f}"
    masks = torch.load(checkpoint, weights_only=True)["state_dict"]
    pruned = sum(int((w == 0).sum()) for w in masks.values() if w.dim() > 1)
    assert f"{pruned:,} of them zero as before" in shown
    for batch in (1, 32):
        assert float(row(shown, f"latency of {batch}, ms")[1]) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to=onnx", "--sparse"), "error: sparse files are safetensors, got onnx"),
        (("--to=safetensors", "--values=int8"), "write sparse=True (--sparse)"),
        (("--to=safetensors", "--sparse", "--values=int"), "did you mean 'int8'"),
    ],
)
def test_wrong_options_of_sparse_files_raise_before_the_checkpoint_is_read(
    tmp_path, capsys, words, message
):
    (tmp_path / "empty.ckpt").touch()
    assert main(["export", str(tmp_path / "empty.ckpt"), *words]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
