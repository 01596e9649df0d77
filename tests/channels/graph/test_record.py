# SPDX-License-Identifier: MIT
"""Networks whose outputs have a length that data decides are recorded, cut and compared."""

import copy

import pytest
import torch
from torch import nn

from regrow.channels import groups, prune
from regrow.channels.cut.surgery import mask_tensor
from regrow.channels.graph.record import DataDecides, record
from regrow.utils.errors import ConfigError


class Detector(nn.Module):
    """Chooses places by their score, pools their features, and classifies them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.neck = nn.Conv2d(8, 6, 3, padding=1)
        self.scores, self.boxes = nn.Conv2d(6, 2, 1), nn.Conv2d(6, 4, 1)
        self.hidden, self.classes = nn.Linear(6, 10), nn.Linear(10, 3)

    def dense(self, images):
        features = self.neck(self.body(torch.stack([*images]))).relu()
        return features, self.scores(features), self.boxes(features)

    def forward(self, images, targets=None):
        features, scores, boxes = self.dense(images)
        if self.training:
            wanted = torch.stack([target["box"] for target in targets])
            if (wanted[:, 2:] <= wanted[:, :2]).any():
                raise ValueError("a box has no area")
            return {"box": (boxes.mean((2, 3)) - wanted).square().mean(), "score": scores.mean()}
        found = []
        for image, score, box in zip(features, scores, boxes, strict=True):
            best = score.amax(0).flatten()
            keep = torch.where(best > best.mean())[0]
            rows = image.flatten(1).t()[keep]
            pooled = torch.zeros(len(rows), image.shape[0], dtype=rows.dtype)
            pooled[torch.where(rows[:, 0] >= 0)[0]] = rows
            classes = self.classes(self.hidden(pooled).relu())
            found.append({"boxes": box.flatten(1).t()[keep], "classes": classes.softmax(-1)})
        return found


def make_detector():
    torch.manual_seed(0)
    model = Detector().double().eval()
    model.body[1].running_mean.uniform_(-0.2, 0.2)
    return model, torch.randn(2, 3, 8, 8, dtype=torch.float64)


def masked_copy(model, plan):
    """The model before the cut, with zeros in place of what the cut removed."""
    other = copy.deepcopy(model)
    tensors = dict(other.named_parameters()) | dict(other.named_buffers())
    with torch.no_grad():
        for name, kept in plan.kept.items():
            tensors[name].copy_(mask_tensor(tensors[name], kept))
    return other


def test_cut_detector_computes_what_the_masked_one_does():
    model, images = make_detector()
    dense = copy.deepcopy(model)
    plan = prune(model, images, 0.5, round_to=1)
    assert {"body.0", "neck", "hidden"} <= plan.removed.keys()
    assert not {"scores", "boxes", "classes"} & plan.removed.keys()
    masked = masked_copy(dense, plan)
    for found, expected in zip(model.dense(images)[1:], masked.dense(images)[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for found, expected in zip(model(images), masked(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_lists_of_images_and_boxes_are_example_inputs():
    model, images = make_detector()
    targets = [{"box": torch.tensor([1.0, 1, 5, 6], dtype=torch.float64)}] * 3
    plan = prune(model, ([*images, images[0]], targets), 0.5, round_to=1)
    assert plan.removed
    assert plan.error < 1e-12
    assert model.train()([*images], targets[:2])["box"].isfinite()


def test_layers_that_data_chooses_from_are_the_output():
    model, images = make_detector()
    fixed = {group.name: group.fixed_reason for group in groups(model, images)}
    assert all(fixed[name] for name in ("scores", "boxes", "classes"))
    assert fixed["neck"] is fixed["hidden"] is fixed["body.0"] is None
    assert record(model, images).heads == ("scores", "boxes", "classes")


def test_recording_changes_and_prints_nothing(capfd):
    model, images = make_detector()
    before, keys = copy.deepcopy(model.state_dict()), [*vars(model)]
    groups(model, images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [*vars(model)] == keys
    assert not model._forward_hooks
    assert capfd.readouterr().err == ""


def test_number_made_from_data_is_refused():
    class Branching(Detector):
        def forward(self, images):
            return super().forward(images if images.sum() > 0 else -images)

    model, images = Branching().eval(), torch.ones(2, 3, 8, 8)
    with pytest.raises(DataDecides, match="is_nonzero"):
        record(model, images)
    with pytest.raises(ConfigError, match="cannot trace Branching"):
        groups(model, images)


def test_number_made_from_data_after_the_last_layer_is_allowed():
    """Mask R-CNN pastes masks into as many pixels as a box has."""

    class Pasting(Detector):
        def forward(self, images):
            found = super().forward(images)
            sizes = [int(boxes["boxes"].abs().max() * 10) + 1 for boxes in found]
            return [found, [torch.zeros(size) for size in sizes]]

    model, images = Pasting().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    recording = record(model, images)
    assert not recording.exact
    assert recording.heads == ("scores", "boxes", "classes")
    plan = prune(model, images, 0.5, round_to=1)
    assert {"body.0", "neck", "hidden"} <= plan.removed.keys()
    assert plan.error < 1e-12


@pytest.mark.parametrize("test", ["isfinite", "isinf", "isnan"])
def test_check_for_overflow_is_no_choice_by_data(test):
    """The branch is the same for all inputs that are finite."""

    class Guarded(Detector):
        def dense(self, images):
            features, *others = super().dense(images)
            failed = getattr(torch, test)(features).all() == (test != "isfinite")
            if failed or torch.isnan(features).any():
                features = features.clamp(-1, 1)
            return features, *others

    model, images = Guarded().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert record(model, images).heads == ("scores", "boxes", "classes")
    assert prune(model, images, 0.5, round_to=1).error < 1e-12


def test_parameter_that_the_run_does_not_use_is_refused():
    class Spare(Detector):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(8, 8)

        def forward(self, images):
            return super().forward(images)

    model, images = Spare().eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ConfigError, match="Spare"):
        groups(model, images)
