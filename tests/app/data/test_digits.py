# SPDX-License-Identifier: MIT
from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from regrow.app.data import digits
from regrow.app.data.digits import Digits


def test_sizes_and_classes() -> None:
    (images, labels), (test_images, test_labels) = Digits().read()
    assert images.shape == (Digits.samples, *Digits.input_shape)
    assert test_images.shape == (360, 1, 8, 8)
    assert images.dtype == torch.uint8
    counts = np.bincount(load_digits().target)
    assert np.abs(np.bincount(test_labels) - counts * 360 / 1797).max() < 1
    assert np.array_equal(np.bincount(labels) + np.bincount(test_labels), counts)


def test_splits_contain_every_image_unchanged() -> None:
    train, test = Digits().read()
    mine = np.concatenate(
        [
            np.concatenate([images.numpy().reshape(-1, 64), labels.numpy()[:, None]], axis=1)
            for images, labels in (train, test)
        ]
    )
    images, labels = load_digits(return_X_y=True)
    theirs = np.concatenate([images, labels[:, None]], axis=1)
    assert sorted(map(tuple, mine.tolist())) == sorted(map(tuple, theirs.astype(int).tolist()))


def test_the_test_set_does_not_depend_on_the_seed() -> None:
    first, second = (
        torch.cat([images for images, _ in Digits(seed=seed).test_dataloader()]) for seed in (0, 5)
    )
    assert torch.equal(first, second)


def test_normalization_constants_are_those_of_the_training_set() -> None:
    (images, _), _ = Digits().read()
    pixels = images.numpy() / Digits.scale
    assert pixels.max() == 1
    assert Digits.mean[0] == pytest.approx(pixels.mean(), abs=1e-5)
    assert Digits.std[0] == pytest.approx(pixels.std(), abs=1e-5)


def test_missing_scikit_learn_raises_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    digits._read.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        Digits().setup()
