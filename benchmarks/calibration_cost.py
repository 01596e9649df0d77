# SPDX-License-Identifier: MIT
"""Claim: pruning without training takes time linear in depth, and minutes for ResNet-50.

Chains of 3x3 convolutions with batch norm, 32 channels, 256 images of 16x16 in batches of 32; then
torchvision's ResNet-50 (random weights, left out without torchvision) with images of 224x224 of
random numbers, by `calibrate` at 80 % with each criterion. Two threads. Memory is what the process
grows by at its peak, with the copies of weights that `undo` needs (Linux).
"""

import time

import torch
from _bench import arguments, in_child, peak_extra, show
from torch import nn

from regrow import calibrate

DEPTHS = (8, 16, 32)
CRITERIA = ("magnitude", "wanda", "sparsegpt", "obs")


def chain(depth):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1)]
    for _ in range(depth - 1):
        layers += [nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
    return nn.Sequential(*layers).eval()


def resnet50():
    from _vision import build

    return build("torchvision", "resnet50")


def measured(make, given, size, images, criterion):
    """Seconds and MB."""
    torch.set_num_threads(2)
    model = make(*given)
    data = [torch.randn(32, 3, size, size) for _ in range(images // 32)]
    with torch.no_grad():
        model(data[0])  # what is made once does not count
    start = time.perf_counter()
    extra = peak_extra(lambda: calibrate(model, data, 0.8, criterion=criterion, samples=images))
    return time.perf_counter() - start, extra / 1e6


def main():
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=256, help="of ResNet-50")
    parser.add_argument("--criteria", nargs="*", choices=CRITERIA, default=[*CRITERIA])
    options = parser.parse_args()
    rows, claims, seconds = [], {}, {}
    for depth in DEPTHS:
        found = in_child(measured, chain, (depth,), 16, 256, "magnitude")
        seconds[depth] = found[0]
        rows.append({"network": f"chain of {depth}", "criterion": "magnitude"} | columns(found))
    claims["seconds of 32 layers / 16 layers"] = seconds[32] / seconds[16], 2.5
    try:
        import torchvision  # noqa: F401
    except ImportError:
        options.criteria = []
    for criterion in options.criteria:
        found = in_child(measured, resnet50, (), 224, options.images, criterion)
        rows.append({"network": "ResNet-50", "criterion": criterion} | columns(found))
        claims[f"minutes of ResNet-50, {criterion}"] = found[0] / 60, 30
    show("Cost of pruning by 80 % and a refit, two threads", rows, claims, options.out)


def columns(found):
    return {"seconds": found[0], "MB at the peak": found[1]}


if __name__ == "__main__":
    main()
