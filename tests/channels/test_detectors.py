# SPDX-License-Identifier: MIT
"""Detectors of torchvision are cut whole, and the cut ones train and detect."""

import copy

import pytest
import torch

from regrow.channels import prune
from regrow.channels.cut.surgery import mask_tensor
from regrow.profiling.macs import count_macs

pytestmark = pytest.mark.vision

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS = [{"boxes": torch.tensor([[5.0, 5, 30, 40]]), "labels": torch.tensor([2])}] * 2
EXAMPLE = [*IMAGES.double()], [{"boxes": t["boxes"].double(), **t} for t in TARGETS]


def make(name):
    detection = pytest.importorskip("torchvision.models.detection")
    sizes = {} if "ssd" in name else {"min_size": 64, "max_size": 64}
    torch.manual_seed(0)
    return getattr(detection, name)(weights=None, weights_backbone=None, num_classes=4, **sizes)


def dense_outputs(model, layers):
    """The outputs of some layers in one run, before boxes are chosen."""
    found = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda *given: found.append(given[-1]))
        for path in layers
    ]
    with torch.no_grad():
        model(EXAMPLE[0])
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", ["rpn.head", "roi_heads.box_predictor"]),
        ("retinanet_resnet50_fpn", ["head"]),
        pytest.param("fcos_resnet50_fpn", ["head"], marks=pytest.mark.slow),
        pytest.param("ssdlite320_mobilenet_v3_large", ["head"], marks=pytest.mark.slow),
    ],
)
def test_cut_detector_computes_what_the_masked_one_does(name, layers):
    model = make(name).double().eval()
    masked = copy.deepcopy(model)
    dense = count_macs(model, EXAMPLE).macs
    plan = prune(model, EXAMPLE, 0.3, of="macs")
    assert count_macs(model, EXAMPLE).macs == pytest.approx(0.7 * dense, abs=0.03 * dense)
    tensors = dict(masked.named_parameters()) | dict(masked.named_buffers())
    with torch.no_grad():
        for key, kept in plan.kept.items():
            tensors[key].copy_(mask_tensor(tensors[key], kept))
    found, expected = dense_outputs(model, layers), dense_outputs(masked, layers)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    losses = model.train()(*EXAMPLE)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
