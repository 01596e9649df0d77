# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from small_images import write_shard
from torch import Tensor, nn

from regrow.app.data import tar_shards as stream
from regrow.app.data.tar_shards import StreamLoader
from regrow.app.data.webdataset import ImageNetShards
from regrow.app.data.worker_loader import WorkerConfig
from regrow.app.training.classifier import Classifier
from regrow.utils.errors import ConfigError, DataError, StateError

pytestmark = pytest.mark.vision


def make(folder: Path, **given: Any) -> ImageNetShards:
    usual = {"num_classes": 3, "val_shards": 2, "epoch_samples": 30, "shuffle_buffer": 4}
    usual |= {"size": 16, "resize": 20, "batch_size": 4, "num_workers": 0}
    train, test = f"{folder}/train-*.tar", f"{folder}/val-*.tar"
    return ImageNetShards(train, test, **usual | given)


def epoch(data: ImageNetShards, number: int = 0) -> list[tuple[Tensor, Tensor]]:
    loader = data.train_dataloader()
    loader.set_epoch(number)
    return list(loader)


def same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(images, others) and torch.equal(labels, numbers)
        for (images, labels), (others, numbers) in zip(left, right, strict=True)
    )


def keys(shards: Path, count: int, **given: Any) -> list[str]:
    """The names of the first images that a reader hands out; shards 0 to 4 hold 30."""
    paths = tuple(shards / f"train-{number:02d}.tar" for number in range(5))
    usual = {"buffer": 4, "seed": 0, "epoch": 0, "number": 0, "readers": 1} | given
    config = WorkerConfig(lambda image: image, lambda *batch: batch, usual["readers"])
    sizes = {"batch_size": 1, "epoch_samples": 30, "shuffle_buffer": usual["buffer"]}
    loader = StreamLoader(paths, 3, config, **sizes, seed=usual["seed"])
    return [raw[1] for raw in islice(loader.read_images(usual["epoch"], usual["number"]), count)]


@pytest.mark.parametrize("buffer", [1, 4, 100])
@pytest.mark.parametrize("readers", [1, 2, 5])
def test_workers_read_each_image_once_per_pass(shards: Path, buffer: int, readers: int) -> None:
    sizes = [len(range(number, 5, readers)) * 6 for number in range(readers)]
    parts = [
        keys(shards, size, buffer=buffer, number=number, readers=readers)
        for number, size in enumerate(sizes)
    ]
    assert Counter(key for part in parts for key in part) == Counter(
        f"sample{number:05d}" for number in range(30)
    )
    again = keys(shards, 2 * sizes[0], buffer=buffer, readers=readers)
    assert again[: sizes[0]] == parts[0]
    assert Counter(again[sizes[0] :]) == Counter(parts[0])


def test_order_is_shuffled_by_seed_and_epoch(shards: Path) -> None:
    orders = {tuple(keys(shards, 30, seed=s, epoch=e)) for s in range(3) for e in range(3)}
    assert len(orders) == 9
    assert keys(shards, 30) == keys(shards, 30)
    pairs = [sorted(keys(shards, 6, buffer=b)) == keys(shards, 6, buffer=b) for b in (1, 6)]
    assert pairs == [True, False]  # a buffer of 1 leaves the order within a shard


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_length_is_a_number_of_images(shards: Path, workers: int) -> None:
    data = make(shards, epoch_samples=30, num_workers=workers)
    batches = epoch(data)
    assert [len(labels) for _, labels in batches] == [4] * 7 + [2]
    assert len(data.train_dataloader()) == 8
    counts = torch.bincount(torch.cat([labels for _, labels in batches]))
    if not workers:  # 5 shards by one worker: each image once
        assert counts.tolist() == [10, 10, 10]
    assert len(epoch(make(shards, epoch_samples=75, num_workers=workers))) == 19
    assert same(epoch(make(shards, num_workers=workers)), batches)
    crops = [
        {image.contiguous().numpy().tobytes() for images, _ in part for image in images}
        for part in (batches, epoch(make(shards, num_workers=workers), 1))
    ]
    assert not crops[0] & crops[1]  # every epoch crops anew


def test_global_generators_are_not_used(shards: Path) -> None:
    for workers in (0, 2):
        before = torch.get_rng_state()
        epoch(make(shards, num_workers=workers))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_resumed_run_continues_at_the_same_image(shards: Path, workers: int) -> None:
    whole = epoch(make(shards, num_workers=workers), 1)
    for cut in (1, 5, 8) if workers != 3 else (4,):
        first = make(shards, num_workers=workers)
        loader = first.train_dataloader()
        loader.set_epoch(1)
        seen = list(islice(loader, cut))
        again = make(shards, num_workers=workers)
        again.load_state_dict(first.state_dict())
        assert same(seen + epoch(again, 1), whole)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"num_workers": 2}, "workers 1, .*this run has .*workers 2"),
        ({"shuffle_buffer": 5}, "buffer 4; this run has .*buffer 5"),
        ({"val_shards": 1}, "shards 5, .*this run has .*shards 6"),
        ({"batch_size": 5, "epoch_samples": 40}, "batch size 4, .*this run has .*batch size 5"),
        ({"seed": 1}, "seed 0, .*this run has .*seed 1"),
    ],
)
def test_state_of_another_stream_raises_in_mid_epoch_only(
    shards: Path, other: dict[str, int], words: str
) -> None:
    data = make(shards)
    batches = iter(data.train_dataloader())
    next(batches)
    again = make(shards, **other)
    again.load_state_dict(data.state_dict())
    with pytest.raises(StateError, match=words):
        again.train_dataloader()
    list(batches)
    again.load_state_dict(data.state_dict())
    again.train_dataloader()


def test_ranks_have_equally_many_batches(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in range(2):
        monkeypatch.setattr(stream, "rank_and_world", lambda rank=rank: (rank, 2))
        batches = epoch(make(shards, num_workers=2, epoch_samples=31))
        assert [len(labels) for _, labels in batches] == [4, 4, 4, 4]
        seen.append(torch.cat([images for images, _ in batches]).flatten(1))
    assert not torch.equal(*seen)
    with pytest.raises(ConfigError, match=r"5 training shards are too few .*num_workers=2"):
        make(shards, num_workers=3).train_dataloader()


def test_evaluation_visits_every_image_once(shards: Path) -> None:
    for workers in (0, 2):
        data = make(shards, num_workers=workers)
        val = torch.cat([labels for _, labels in data.val_dataloader()])
        test = torch.cat([labels for _, labels in data.test_dataloader()])
        assert val.tolist() == [number % 3 for number in range(30, 42)]  # the last two shards
        assert test.tolist() == [number % 3 for number in range(1000, 1010)]


def test_held_out_shards_must_contain_every_class(tmp_path: Path) -> None:
    for number in range(3):
        write_shard(tmp_path / f"train-{number}.tar", range(number, 48, 3))  # one class each
    write_shard(tmp_path / "val-0.tar", range(6))
    given = {"num_classes": 3, "val_shards": 1, "num_workers": 0}
    data = ImageNetShards(f"{tmp_path}/train-*.tar", f"{tmp_path}/val-0.tar", **given)
    with pytest.raises(DataError, match="have 16 images of 1 of 3 classes only: write sorted"):
        data.setup()


def test_missing_data_raises_with_its_place_and_size(shards: Path) -> None:
    for data in (ImageNetShards(), ImageNetShards(str(shards))):
        for call in (data.prepare_data, data.setup):
            with pytest.raises(DataError) as error:
                call()
            for words in ("138 GB", "6.3 GB", "NAME.jpg", "DIR/x-*.tar"):
                assert words in str(error.value)
    with pytest.raises(DataError, match=r"no \.tar files in .*train-07\.tar"):
        ImageNetShards([str(shards), f"{shards}/train-07.tar"], str(shards)).prepare_data()
    with pytest.raises(ConfigError, match=r"val_shards must leave some of the 7 .*at most 6"):
        make(shards, val_shards=7).setup()


class Seen(Callback):
    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.batches += 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fit_on_shards_trains(shards: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten(), nn.Linear(64, 3))
    sgd = partial(torch.optim.SGD, lr=0.05)
    model = Classifier(network, sgd, num_classes=3)
    seen = Seen()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = make(shards, num_workers=2)
    trainer.fit(model, datamodule=data)
    assert seen.batches == 16
    [scores] = trainer.test(model, datamodule=data, verbose=False)
    assert 0 <= scores["test/accuracy"] <= 1
