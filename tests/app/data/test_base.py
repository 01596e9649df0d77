# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from regrow.app.data.augment import make_normalizer
from regrow.app.data.base import ImageDataModule, Samples
from regrow.utils.errors import ConfigError


class Stripes(ImageDataModule):
    """Every image holds its own number."""

    num_classes = 4
    input_shape = (1, 8, 8)
    samples = 40
    scale = 1.0
    mean = (0.0,)
    std = (1.0,)

    def read(self) -> tuple[Samples, Samples]:
        def part(count: int, start: int) -> Samples:
            numbers = torch.arange(start, start + count, dtype=torch.uint8)
            return numbers.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), numbers.long() % 4

        return part(40, 0), part(12, 100)


def numbers(loader: Any) -> list[int]:
    return [int(image.max()) for images, _ in loader for image in images]


def test_splits_are_disjoint_complete_and_stratified() -> None:
    data = Stripes(batch_size=5, val_size=8)
    data.setup("fit")
    train, val = numbers(data.train_dataloader()), numbers(data.val_dataloader())
    assert sorted(train + val) == list(range(40))
    assert np.bincount(np.array(val) % 4).tolist() == [2, 2, 2, 2]
    assert numbers(data.test_dataloader()) == list(range(100, 112))


def test_split_and_order_depend_on_the_seed() -> None:
    def both(seed: int) -> tuple[list[int], list[int]]:
        data = Stripes(batch_size=5, val_size=8, seed=seed)
        data.setup()
        return numbers(data.train_dataloader()), numbers(data.val_dataloader())

    assert both(0) == both(0)
    assert both(0)[0] != both(1)[0]
    assert both(0)[1] != both(1)[1]
    assert both(0)[1] == sorted(both(0)[1])


def test_only_training_images_are_augmented() -> None:
    data = Stripes(batch_size=40, val_size=8, augment="crop_flip")
    data.setup()
    images = torch.cat([images for images, _ in data.train_dataloader()])
    assert (images.flatten(1).min(1).values == 0).any()
    assert images[0].shape == (1, 8, 8)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        for images, _ in loader:
            assert torch.equal(images, images[:, :, :1, :1].expand_as(images))


def test_images_are_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stripes, "mean", (0.5,))
    monkeypatch.setattr(Stripes, "std", (2.0,))
    data = Stripes(batch_size=12, val_size=8)
    images, labels = next(iter(data.test_dataloader()))
    (_, _), (raw, targets) = data.read()
    assert torch.equal(images, make_normalizer(1.0, (0.5,), (2.0,))(raw))
    assert torch.equal(labels, targets)
    assert labels.dtype == torch.int64


def test_position_reaches_a_loader_made_before_or_after() -> None:
    data = Stripes(batch_size=5, val_size=8)
    data.setup("fit")
    assert data.state_dict() == {}
    batches = iter(data.train_dataloader())
    expected = [labels.tolist() for _, labels in data.train_dataloader()]
    batches = iter(data.train_dataloader())
    next(batches)
    state = data.state_dict()

    early, late = Stripes(batch_size=5, val_size=8), Stripes(batch_size=5, val_size=8)
    early.setup("fit")
    loader = early.train_dataloader()
    early.load_state_dict(state)
    assert [labels.tolist() for _, labels in loader] == expected[1:]
    late.setup("fit")
    late.load_state_dict(state)
    assert [labels.tolist() for _, labels in late.train_dataloader()] == expected[1:]
    late.setup("fit")
    assert [labels.tolist() for _, labels in late.train_dataloader()] == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"val_size": 40}, "val_size must be a fraction in .* from 1 to 39, got 40"),
        ({"val_size": 1.0}, "val_size must be"),
        ({"seed": -1}, "seed must be"),
        ({"augment": "crop"}, "did you mean 'crop_flip'"),
    ],
)
def test_wrong_arguments_raise_at_construction(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Stripes(**wrong)
