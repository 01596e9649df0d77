# SPDX-License-Identifier: MIT
"""Compare the classes that a network predicts with labels and with those of its dense copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from regrow.utils.batches import batch_size, bound_forward
from regrow.utils.errors import ConfigError
from regrow.utils.modes import in_mode


@dataclass(frozen=True)
class Fidelity:
    """How well a network classifies, by labels if there are any, and compared with a dense one.

    Attributes:
        count: Number of examples (of pixels, where each has a class).
        accuracy: Fraction of right classes; None without labels.
        agreement: Fraction of examples for which both networks predict the same class.
        kl: Mean KL divergence of the network's probabilities from the dense ones, in nats.
        drop: Accuracy of the dense network minus `accuracy`; without labels 1 - `agreement`.
        error: Standard error of `drop`, from the examples that only one network gets right.
        by_class: By class (by label, else as the dense network predicts): number of examples, and
            the fractions of them that the dense network and the network put into it.
    """

    count: int
    accuracy: float | None
    agreement: float
    kl: float
    drop: float
    error: float
    by_class: Mapping[int, tuple[int, float, float]]

    @property
    def score(self) -> float:
        """The accuracy if there are labels, else the agreement."""
        return self.agreement if self.accuracy is None else self.accuracy

    def damage(self) -> dict[int, float]:
        """Return what each class loses of its fraction, the most damaged class first."""
        losses = {label: dense - own for label, (_, dense, own) in self.by_class.items()}
        return dict(sorted(losses.items(), key=lambda item: -item[1]))


def measure_fidelity(model: nn.Module, dense: nn.Module, batches: Iterable[Any]) -> Fidelity:
    """Run both networks in eval mode on all batches.

    Args:
        model: The network.
        dense: The dense network.
        batches: Inputs, or tuples and lists of inputs and labels. Labels count if they are integer
            tensors with one entry for each predicted class; those that are no class are left out.

    Raises:
        ConfigError: If there are no batches, if only some have labels, or if outputs are no logits
            of two or more classes.
    """
    kl, labelled, rows = 0.0, set[bool](), Tensor()
    with in_mode(model, training=False), in_mode(dense, training=False):
        for batch in batches:
            inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
            logits = class_logits(bound_forward(model, inputs)()).detach()
            goal = class_logits(bound_forward(dense, inputs)()).detach()
            predicted, expected = logits.argmax(1), goal.argmax(1)
            labels = _labels(batch, expected)
            labelled.add(labels is not None)
            classes = expected if labels is None else labels
            real = (classes >= 0) & (classes < logits.shape[1])
            kl += float(divergences(logits, goal)[real].sum())
            right, dense_right = predicted == classes, expected == classes
            events = (
                right == right,
                dense_right,
                right,
                right & dense_right,
                predicted == expected,
            )
            found = [
                classes[real & event].bincount(minlength=logits.shape[1]).cpu() for event in events
            ]
            rows = torch.stack(found, 1) + (rows if rows.numel() else 0)
    if not labelled or not int(rows.sum()):
        raise ConfigError("there is nothing to judge by: pass a loader of inputs as validation=")
    if len(labelled) > 1:
        raise ConfigError("only some of the batches have labels: pass all with labels, or none")
    count, dense_right, right, both, agreed = rows.sum(0).tolist()
    drop = (dense_right - right) / count
    changed = (dense_right + right - 2 * both) / count
    return Fidelity(
        count,
        right / count if labelled == {True} else None,
        agreed / count,
        kl / count,
        drop,
        math.sqrt(max(0.0, changed - drop**2) / count),
        {k: (n, old / n, new / n) for k, (n, old, new, *_) in enumerate(rows.tolist()) if n},
    )


def class_logits(output: Any) -> Tensor:
    """Return the logits `(examples, classes, ...)` in a network's output.

    Args:
        output: A tensor, a mapping or an object with `logits`, or a tuple that starts with them.

    Raises:
        ConfigError: If there are none.
    """
    found: Any = output.get("logits") if isinstance(output, Mapping) else output
    found = getattr(found, "logits", found)
    found = found[0] if isinstance(found, list | tuple) and found else found
    logits = isinstance(found, Tensor) and found.is_floating_point() and found.ndim > 1
    if logits and found.shape[1] > 1:
        return cast(Tensor, found)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
    raise ConfigError(
        f"the model returns no logits of two or more classes, got {shape}: write "
        "evaluate=function, which takes the model and returns a number, higher is better"
    )


def divergences(logits: Tensor, goal: Tensor) -> Tensor:
    """Return KL(softmax(goal) || softmax(logits)) of each example."""
    log_p, log_q = (F.log_softmax(one.double(), 1) for one in (goal, logits))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def output_loss(
    model: nn.Module, batches: Sequence[Any], *, classifies: bool, examples: int = 256
) -> Callable[[], float]:
    """Return a function that compares the model's outputs with those that it has now.

    Args:
        model: The model; it runs in eval mode.
        batches: Inputs; whole batches are used until there are so many examples.
        classifies: Whether to return the mean KL divergence of the classes in nats; else the
            squared error of all outputs, relative to their squares.
        examples: See `batches`.
    """
    sizes = accumulate(map(batch_size, batches))
    probe = batches[: 1 + sum(size < examples for size in sizes)]

    def outputs() -> list[Tensor]:
        with in_mode(model, training=False):
            results = [bound_forward(model, batch)() for batch in probe]
        if classifies:
            return [class_logits(result).detach().double() for result in results]
        leaves = [leaf for result in results for leaf in tree_leaves(result)]
        return [leaf.detach().double() for leaf in leaves if isinstance(leaf, Tensor)]

    goals = outputs()
    total = sum(float(goal.square().sum()) for goal in goals)

    def loss() -> float:
        pairs = zip(outputs(), goals, strict=True)
        if classifies:
            return float(torch.cat([divergences(*pair).flatten() for pair in pairs]).mean())
        return sum(float((a - b).square().sum()) for a, b in pairs) / max(total, 1e-30)

    return loss


def _labels(batch: Any, like: Tensor) -> Tensor | None:
    """Return the labels of a batch; None if it has none."""
    labels = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        return None
    return labels.to(like.device) if labels.shape == like.shape else None
