# SPDX-License-Identifier: MIT
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from regrow.app.training.classifier import Classifier
from regrow.data.tensor_loader import BatchLoader
from regrow.utils.errors import ConfigError

SGD1 = partial(SGD, lr=0.1, momentum=0.9)


def make(num_classes: int = 3, **kw: Any) -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))
    return Classifier(network, SGD1, num_classes=num_classes, **kw)


def loader(num_classes: int = 3, batch_size: int = 8) -> BatchLoader:
    torch.manual_seed(1)
    images = torch.randn(20, 1, 2, 2)
    return BatchLoader(images, torch.arange(20) % num_classes, batch_size=batch_size)


def trainer(**kw: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, **kw},
    )


def softmax_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-log_p[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("num_classes", [3, 12])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_loss_and_accuracy_match_numpy(num_classes: int, stage: str) -> None:
    model, data = make(num_classes), loader(num_classes)
    evaluate = trainer().validate if stage == "val" else trainer().test
    (logged,) = evaluate(model, data, verbose=False)
    logits, labels = model(data.images).detach().numpy(), data.labels.numpy()
    order = np.argsort(-logits, axis=1)
    expected = {
        f"{stage}/loss": softmax_loss(logits, labels),
        f"{stage}/accuracy": np.mean(order[:, 0] == labels),
    }
    if num_classes > 10:
        expected[f"{stage}/accuracy_top5"] = np.mean((order[:, :5] == labels[:, None]).any(1))
    assert logged == pytest.approx(expected, abs=1e-6)


def test_training_reduces_the_loss_and_logs_it() -> None:
    model, data, fit = make(), loader(), trainer(max_epochs=30)
    before = trainer().validate(model, data, verbose=False)[0]["val/loss"]
    fit.fit(model, data, data)
    assert fit.callback_metrics["val/loss"] < before
    assert "train/loss" in fit.callback_metrics


def test_label_smoothing_applies_to_the_training_loss_only() -> None:
    model, data = make(label_smoothing=0.3), loader(batch_size=20)
    logits, labels = model(data.images).detach().numpy(), data.labels.numpy()
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    target = np.full((20, 3), 0.1) + 0.7 * np.eye(3)[labels]
    fit = trainer(max_steps=1)
    fit.fit(model, data)
    smoothed = -(target * log_p).sum(1).mean()
    assert fit.callback_metrics["train/loss"].item() == pytest.approx(smoothed, abs=1e-6)
    (logged,) = trainer().test(make(label_smoothing=0.3), data, verbose=False)
    assert logged["test/loss"] == pytest.approx(softmax_loss(logits, labels), abs=1e-6)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (2, 4)])
def test_scheduler_gets_the_total_steps_and_steps_every_batch(accumulate: int, steps: int) -> None:
    told: list[int] = []
    asked: list[int] = []

    def schedule(optimizer: Optimizer, total_steps: int) -> LambdaLR:
        told.append(total_steps)
        return LambdaLR(optimizer, lambda step: asked.append(step) or 1.0)

    model = make(scheduler=schedule)
    trainer(accumulate_grad_batches=accumulate).fit(model, loader())  # 3 batches, 2 epochs
    assert told == [steps]
    assert asked == list(range(steps + 1))


def test_schedule_without_a_length_raises() -> None:
    def schedule(optimizer: Optimizer, total_steps: int) -> LambdaLR:
        raise AssertionError("not reached")

    with pytest.raises(ConfigError, match="write max_epochs=N"):
        trainer(max_epochs=-1).fit(make(scheduler=schedule), loader())


def test_checkpoint_is_weights_only_and_holds_no_settings(tmp_path: Path) -> None:
    model, fit = make(), trainer(max_epochs=1)
    fit.fit(model, loader())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert "hyper_parameters" not in checkpoint
    assert set(checkpoint["state_dict"]) == {"network.1.weight", "network.1.bias"}
    other = make()
    again = Classifier.load_from_checkpoint(
        tmp_path / "a.ckpt", network=other.network, optimizer=SGD1, num_classes=3
    )
    x = torch.randn(5, 1, 2, 2)
    assert torch.equal(again(x), model(x))


def test_example_input_has_the_data_shape() -> None:
    example = make(input_shape=[1, 2, 2]).example_input_array
    assert isinstance(example, Tensor)
    assert example.shape == (1, 1, 2, 2)
    assert make().example_input_array is None


@pytest.mark.parametrize(
    "wrong", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"num_classes": 1}]
)
def test_wrong_values_raise(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make(**wrong)
