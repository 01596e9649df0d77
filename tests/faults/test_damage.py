# SPDX-License-Identifier: MIT
"""Damaged checkpoints raise an error or load exactly the right state, never wrong masks."""

import io
import random
import zipfile

import pytest
import torch
from interrupted_fits import Save, data, run
from tiny_fits import ADAM, Net, equal, fit, read, trainer

from regrow import MagnitudePruning, StateError, Table
from regrow.io.checkpoints import check_checksums, read_checkpoint
from regrow.io.integrity import verify_digest, with_digest

SEEDS = [3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1, 2, 4, 5))]
CASES = 100  # a seed


def pruning():
    return MagnitudePruning(0.75, schedule=Table({"3it": 0.5, "9it": 0.75}))


KEY = pruning().state_key


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of step 8 as bytes, its content, and the result of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("saved")
    whole = run(folder / "end.ckpt", pruning(), Save(folder / "cut.ckpt", 8))
    return (folder / "cut.ckpt").read_bytes(), read(folder / "cut.ckpt"), whole


def flipped(raw, draw):
    """Flip one random bit."""
    place = draw.randrange(8 * len(raw))
    other = bytearray(raw)
    other[place // 8] ^= 1 << place % 8
    return bytes(other)


@pytest.mark.parametrize("seed", SEEDS)
def test_flipped_bit_raises_or_is_harmless(seed, saved, tmp_path):
    raw, right, _ = saved
    draw, path, refused = random.Random(seed), tmp_path / "bad.ckpt", 0
    for _ in range(CASES):
        path.write_bytes(flipped(raw, draw))
        try:
            assert equal(read_checkpoint(path), right)
        except StateError as error:
            refused += "bad.ckpt" in str(error)
    assert refused > CASES // 2  # most bytes mean something


@pytest.mark.parametrize("seed", SEEDS)
def test_digest_alone_finds_flipped_bits(seed, saved):
    """For a checkpoint that is not loaded from a file with checksums."""
    raw, right, _ = saved
    right = right["callbacks"][KEY]["pruner"]
    draw, wrong = random.Random(seed), 0
    for _ in range(20 * CASES):
        if wrong == 3:
            break
        try:
            loaded = torch.load(io.BytesIO(flipped(raw, draw)), weights_only=True)
            state = loaded["callbacks"][KEY]["pruner"]
        except Exception:  # refused by torch, or the names above are gone
            continue
        wrong += not equal(state, right)
        try:
            verify_digest(state)
        except StateError:
            pass
        else:
            assert equal(state, right)
    assert wrong == 3, "these would have been loaded"


def test_flipped_bit_of_each_kind_raises_with_the_file_name(saved):
    _, right, _ = saved
    state = right["callbacks"][KEY]["pruner"]
    verify_digest(state)
    first = "body.0.weight"
    kinds = {
        f"masks/bits/{first}": lambda s: s["masks"]["bits"][first].bitwise_xor_(1),
        f"removed_weights/{first}": lambda s: s["removed_weights"][first].neg_(),
        "a value that is no tensor": lambda s: s["history"][0].update(after=0.25),
    }
    for name, change in kinds.items():
        other = torch.load(io.BytesIO(as_bytes(state)), weights_only=True)
        change(other)
        with pytest.raises(StateError, match=name):
            verify_digest(other)


def as_bytes(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_resume_from_a_flipped_file_raises_or_is_exact(saved, tmp_path):
    """Loaded by the Trainer: an error, or the result of the uninterrupted run."""
    raw, _, whole = saved
    draw, refused = random.Random(0), 0
    for _ in range(12):
        path = tmp_path / "bad.ckpt"
        path.write_bytes(flipped(raw, draw))
        try:
            assert equal(run(tmp_path / "end.ckpt", pruning(), ckpt_path=path), whole)
        except AssertionError:
            raise
        except Exception:
            refused += 1
    assert refused > 4


@pytest.mark.parametrize("part", [0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_checkpoint_raises(part, saved, tmp_path):
    raw, _, _ = saved
    path = tmp_path / "cut.ckpt"
    path.write_bytes(raw[: int(part * len(raw))])
    with pytest.raises(StateError, match=r"cut\.ckpt"):
        read_checkpoint(path)
    with pytest.raises(StateError, match=r"cut\.ckpt is damaged \(it has no end\)"):
        check_checksums(path, old=False)
    with pytest.raises((RuntimeError, EOFError, OSError)):  # torch's own
        fit(Net(ADAM), pruning(), data=data(), ckpt_path=path)


def test_every_flipped_mask_bit_is_found_before_training(saved, tmp_path):
    """Each mask bit of a layer is flipped, and found by the file's checksum."""
    raw, right, _ = saved
    bits = right["callbacks"][KEY]["pruner"]["masks"]["bits"]["body.2.weight"]
    start = raw.index(bits.numpy().tobytes())
    for place in range(bits.numel()):
        other = bytearray(raw)
        other[start + place] ^= 1 << place % 8
        (tmp_path / "bad.ckpt").write_bytes(other)
        module, callback = Net(ADAM), pruning()
        with pytest.raises(StateError, match="checksum"):
            callback.attach(module, tmp_path / "bad.ckpt")
    with pytest.raises(StateError, match="checksum"):
        fit(module, callback, data=data(), ckpt_path=tmp_path / "bad.ckpt")
    assert module.trained == 0
    assert zipfile.is_zipfile(tmp_path / "bad.ckpt")


def test_state_without_digest_or_of_another_format_raises(saved, tmp_path):
    checkpoint = saved[1]
    state = checkpoint["callbacks"][KEY]
    bare = {name: value for name, value in state["pruner"].items() if name != "seal"}
    path = tmp_path / "old.ckpt"
    for change, words in (
        ({"pruner": bare}, "has no digest: another version of regrow wrote it"),
        ({"format": 1}, r"has format 1, this version reads format 4: load the weights"),
    ):
        torch.save(checkpoint | {"callbacks": {KEY: state | change}}, path)
        with pytest.raises(StateError, match=words):
            trainer(pruning()).fit(Net(ADAM), data(), ckpt_path=path)


def test_digest_covers_every_kind_of_value():
    state = {
        "a": [1, 1.5, None, "x", True, (2, 3)],
        "b": {"half": torch.ones(3, dtype=torch.bfloat16), "none": torch.empty(0)},
        "c": {},
        "d": torch.tensor(3),
        "e": float("nan"),
    }
    again = torch.load(io.BytesIO(as_bytes(with_digest(state))), weights_only=True)
    verify_digest(again)
    for change in ({"d": torch.tensor(3.0)}, {"c": []}, {"e": 0.0}, {"a": state["a"][:-1]}, {}):
        other = {**again, **change} if change else {k: v for k, v in again.items() if k != "c"}
        with pytest.raises(StateError):
            verify_digest(other)
