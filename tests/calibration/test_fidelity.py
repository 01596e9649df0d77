# SPDX-License-Identifier: MIT
"""Accuracy, agreement and KL divergence of a network and its dense copy, against NumPy."""

import copy
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from regrow.calibration.fidelity import class_logits, measure_fidelity, output_loss
from regrow.utils.errors import ConfigError


def networks():
    torch.manual_seed(0)
    return nn.Linear(6, 4), nn.Linear(6, 4)


def batches(labels=True):
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(n, 6, generator=generator) for n in (30, 30, 11)]
    targets = [torch.randint(4, (len(x),), generator=generator) for x in parts]
    return list(zip(parts, targets, strict=True)) if labels else parts


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def reference(model, dense):
    x = torch.cat(batches(labels=False))
    with torch.no_grad():
        z, d = model(x).double().numpy(), dense(x).double().numpy()
    return z, d, torch.cat([y for _, y in batches()]).numpy()


def test_all_values_are_those_of_numpy():
    model, dense = networks()
    found = measure_fidelity(model, dense, batches())
    z, d, y = reference(model, dense)
    p, q = softmax(d), softmax(z)
    assert found.count == 71
    assert found.accuracy == pytest.approx((z.argmax(1) == y).mean())
    assert found.agreement == pytest.approx((z.argmax(1) == d.argmax(1)).mean())
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    for label, (count, before, after) in found.by_class.items():
        assert count == (y == label).sum()
        assert before == pytest.approx((d.argmax(1) == label)[y == label].mean())
        assert after == pytest.approx((z.argmax(1) == label)[y == label].mean())
    losses = (d.argmax(1) == y).astype(float) - (z.argmax(1) == y)  # of each example
    assert found.drop == pytest.approx(losses.mean())
    assert found.error == pytest.approx(losses.std() / np.sqrt(71))
    assert [*found.damage().values()] == sorted(found.damage().values(), reverse=True)


def test_without_labels_classes_are_those_of_the_dense_network():
    model, dense = networks()
    found = measure_fidelity(model, dense, batches(labels=False))
    z, d, _ = reference(model, dense)
    assert found.accuracy is None
    assert found.score == found.agreement == pytest.approx((z.argmax(1) == d.argmax(1)).mean())
    assert found.drop == pytest.approx(1 - found.agreement)
    for label, (count, before, share) in found.by_class.items():
        assert (count, before) == ((d.argmax(1) == label).sum(), 1.0)
        assert share == pytest.approx((z.argmax(1) == label)[d.argmax(1) == label].mean())
    assert {*found.by_class} == {*d.argmax(1)}


def test_the_dense_network_agrees_with_itself():
    model, _ = networks()
    found = measure_fidelity(model, model, batches(labels=False))
    assert (found.agreement, found.kl, found.drop, found.error) == (1.0, 0.0, 0.0, 0.0)
    assert {row[1:] for row in found.by_class.values()} == {(1.0, 1.0)}


def test_pixels_are_examples_and_labels_outside_the_classes_are_left_out():
    class Pixels(nn.Module):
        def forward(self, x):
            return torch.stack([x, -x], 1)  # class 0 where x > 0

    x = torch.tensor([[[1.0, -1.0], [2.0, -2.0]]])
    labels = torch.tensor([[[0, 0], [255, 1]]])
    found = measure_fidelity(Pixels(), Pixels(), [(x, labels)])
    assert found.count == 3
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.by_class == {0: (2, 0.5, 0.5), 1: (1, 1.0, 1.0)}


def test_logits_are_found_in_outputs_and_others_are_refused():
    logits = torch.zeros(2, 3)
    output = namedtuple("output", "logits extra")(logits, None)
    assert class_logits(output) is logits
    assert class_logits({"logits": logits}) is logits
    assert class_logits((logits, 1)) is logits
    for other in (torch.zeros(2), torch.zeros(2, 1), {"boxes": logits}, None):
        with pytest.raises(ConfigError, match="evaluate="):
            class_logits(other)


def test_batches_of_which_only_some_have_labels_are_refused():
    model, dense = networks()
    with pytest.raises(ConfigError, match="only some"):
        measure_fidelity(model, dense, [*batches(), batches(labels=False)[0]])
    with pytest.raises(ConfigError, match="nothing to judge"):
        measure_fidelity(model, dense, [])


def test_the_loss_of_outputs_is_a_divergence_or_a_relative_error():
    model, dense = networks()
    x = batches(labels=False)
    for classifies in (True, False):
        loss = output_loss(model, x, classifies=classifies, examples=40)  # of two batches
        assert loss() == 0.0
        before = copy.deepcopy(model.state_dict())
        model.load_state_dict(dense.state_dict())
        found = loss()
        model.load_state_dict(before)
        used = torch.cat(x[:2])
        with torch.no_grad():
            d, z = model(used).double().numpy(), dense(used).double().numpy()
        p, q = softmax(d), softmax(z)
        kl, error = (p * np.log(p / q)).sum(1).mean(), ((z - d) ** 2).sum() / (d**2).sum()
        assert found == pytest.approx(kl if classifies else error, rel=1e-5)
