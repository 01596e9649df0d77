# SPDX-License-Identifier: MIT
"""A killed and resumed fit on any map-style dataset equals the uninterrupted fit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_loader_fits import SAMPLES, SIZE, Net, Noise, check_equal, fit
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset, default_collate

from regrow import ConfigError, RandomState, StateError
from regrow.data import DatasetLoader, ResumableDataModule, dataset_loader

torch.set_num_threads(1)


class OwnGenerators(Noise):
    """Augmentation from generators that are made for each sample, seeded by torch's seed."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = np.random.default_rng(torch.initial_seed()).normal(size=4)
        return torch.full((4,), float(index)) / SAMPLES + torch.tensor(noise).float(), index % 2


def mix(samples: list[tuple[Tensor, int]]) -> Any:
    """A collate function that draws numbers, as MixUp does."""
    inputs, labels = default_collate(samples)
    return inputs + torch.rand(1) * inputs.flip(0), labels


def make(dataset: type[Noise] = Noise, workers: int = 0, **kw: Any) -> ResumableDataModule:
    kw = {"batch_size": SIZE, "num_workers": workers, "seed": 3} | kw
    return ResumableDataModule(dataset(), dataset(), dataset(), **kw)


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "mid-epoch": (Noise, {"workers": 0}, {}),
    "workers": (Noise, {"workers": 2}, {"one_cycle": True}),
    "own generators": (OwnGenerators, {"workers": 0, "drop_last": True}, {"one_cycle": True}),
    "drawing collate": (Noise, {"collate_fn": mix}, {"one_cycle": True}),
    "accumulation": (Noise, {}, {"accumulate_grad_batches": 2, "one_cycle": True}),
    "bounded by steps": (Noise, {}, {"max_steps": 14, "max_epochs": -1}),
    "new loaders": (Noise, {}, {"reload_dataloaders_every_n_epochs": 1, "one_cycle": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_fit_is_the_uninterrupted_one(case: str, tmp_path: Path) -> None:
    dataset, settings, kw = CASES[case]
    steps = 3 if "accumulate_grad_batches" in kw else 7
    save = {"every_n_train_steps": steps}
    check_equal(tmp_path, lambda: make(dataset, **settings), save, RandomState, **kw)


@pytest.mark.parametrize("save_on_train_epoch_end", [False, True])
def test_resumed_at_the_end_of_an_epoch(save_on_train_epoch_end: bool, tmp_path: Path) -> None:
    save = {"every_n_epochs": 1, "save_on_train_epoch_end": save_on_train_epoch_end}
    check_equal(tmp_path, make, save, RandomState, one_cycle=True)


PROGRAM = """
import sys
import regrow
regrow.data.ResumableDataModule
print("hydra" in sys.modules)

import os, signal
from pathlib import Path
from lightning_alias import install_alias
install_alias()
import foreign_loader_fits as fits
from lightning.pytorch import Callback
from regrow import RandomState
from test_data_module import make

class Kill(Callback):
    def on_train_batch_start(self, *_):
        if Path(sys.argv[1], "cut.ckpt").exists():
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    folder, save = Path(sys.argv[1]), {"every_n_train_steps": 7}
    fits.fit(folder, lambda: make(workers=2), save, RandomState(), Kill(), one_cycle=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a killed fit, and what its process printed."""
    folder = tmp_path_factory.mktemp("killed")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-u", program, folder],
        env={
            "PYTHONPATH": ":".join([str(Path(__file__).parent), *filter(None, sys.path)]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder, done.stdout


@pytest.mark.guard
@pytest.mark.slow
def test_killed_with_workers(killed: tuple[Path, str], tmp_path: Path) -> None:
    resume, save = killed[0] / "cut.ckpt", {"every_n_train_steps": 7}
    # the rest of the fit reads with one process: the batches are the same
    weights, batches = fit(tmp_path / "whole", make, save, RandomState(), one_cycle=True)
    again, rest = fit(tmp_path / "r", make, save, RandomState(), resume=resume, one_cycle=True)
    assert len(rest) == 8
    assert all(map(torch.equal, rest, batches[7:]))
    assert all(map(torch.equal, weights, again))


def read(loader: DatasetLoader, epoch: int) -> list[Tensor]:
    loader.set_epoch(epoch)
    return [inputs for inputs, _ in loader]


def test_samples_do_not_depend_on_workers_and_differ_between_epochs() -> None:
    alone, shared = make().train_dataloader(), make(workers=2).train_dataloader()
    first = read(alone, 0)
    assert all(map(torch.equal, first, read(shared, 0)))
    assert not torch.equal(
        torch.cat(first).sort(0).values, torch.cat(read(alone, 1)).sort(0).values
    )


def test_each_sample_is_read_once_an_epoch_in_the_order_of_the_seed() -> None:
    data = TensorDataset(torch.arange(10))
    orders = {}
    for seed in (0, 1):
        loader = ResumableDataModule(data, batch_size=4, seed=seed).train_dataloader()
        orders[seed] = torch.cat([batch[0] for batch in loader]).tolist()
        assert sorted(orders[seed]) == [*range(10)]
    assert orders[0] != orders[1]
    kept = ResumableDataModule(data, batch_size=4, shuffle=False, drop_last=True)
    assert [batch[0].tolist() for batch in kept.train_dataloader()] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_draws_nothing_from_global_generators(workers: int) -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    read(make(workers=workers).train_dataloader(), 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_ranks_read_equal_parts_of_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    data, parts = TensorDataset(torch.arange(10)), []
    for rank in (0, 1):
        monkeypatch.setattr(dataset_loader, "rank_and_world", lambda rank=rank: (rank, 2))
        loader = ResumableDataModule(data, batch_size=2).train_dataloader()
        assert len(loader) == 3
        parts.append(torch.cat([batch[0] for batch in loader]).tolist())
    assert [len(part) for part in parts] == [5, 5]
    assert sorted(parts[0] + parts[1]) == [*range(10)]


def test_validation_is_optional(tmp_path: Path) -> None:
    _, batches = fit(tmp_path, lambda: ResumableDataModule(Noise(), batch_size=SIZE), {})
    assert len(batches) == 3 * SAMPLES // SIZE


def test_other_data_raises_in_mid_epoch(tmp_path: Path) -> None:
    save = {"every_n_train_steps": 3}
    fit(tmp_path, make, save, RandomState(), cut=True)
    with pytest.raises(StateError, match=r"batch size 8.* this run has .*batch size 10"):
        fit(tmp_path / "r", lambda: make(batch_size=10), save, resume=tmp_path / "cut.ckpt")


def test_fit_after_an_evaluation_starts_at_the_beginning(tmp_path: Path) -> None:
    fit(tmp_path, make, {"every_n_train_steps": 3}, RandomState(), cut=True)
    data = make()
    module = Net(one_cycle=False)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.validate(module, datamodule=data, ckpt_path=tmp_path / "cut.ckpt", verbose=False)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == SAMPLES // SIZE


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter([1])


@pytest.mark.parametrize(
    ("make_wrong", "match"),
    [
        (lambda: ResumableDataModule(Stream()), "train must be a map-style dataset.*Stream"),
        (lambda: ResumableDataModule([1], iter([1])), "val must be a map-style dataset"),
        (lambda: ResumableDataModule([1], batch_size=0), "batch_size"),
        (lambda: ResumableDataModule([1]).test_dataloader(), "no test dataset"),
        (lambda: ResumableDataModule([1], drop_last=True).train_dataloader(), "leaves no batch"),
        (lambda: ResumableDataModule([1], sampler=[0]).train_dataloader(), "sampler cannot be set"),
    ],
)
def test_wrong_arguments_raise(make_wrong: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_wrong()


def test_importing_needs_no_hydra(killed: tuple[Path, str]) -> None:
    assert killed[1].splitlines()[0] == "False"
