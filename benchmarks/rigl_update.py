# SPDX-License-Identifier: MIT
"""Claim: an update of RigL every 100 steps costs less than 0.5 % of training at batch 8.

The layers of a ResNet-18, 11 million weights, 90 % of them masked, SGD with momentum, in both
memory formats. The step is a forward and backward pass on small images at full resolution, as for
CIFAR (larger images make steps longer and updates cheaper), the optimizer, and masking after it.
An update by `topk` for each layer is measured for comparison.
"""

import statistics

import torch
from _bench import arguments, interleaved, ratio, resnet18, show
from torch import nn
from torch.nn import functional as F

from regrow.pruning.config import PruningConfig
from regrow.pruning.drop_and_grow import draw_masks, drop_and_grow
from regrow.pruning.pruner import Pruner

SPARSITY, SHARE, BATCH, EVERY, PIXELS = 0.9, 0.3, 8, 100, 32
OURS, TOPK, STEP = "regrow drop_and_grow", "topk, layer by layer", f"training step, batch {BATCH}"


class ResNet18(nn.Module):
    """The layers of `resnet18`, put together."""

    def __init__(self):
        super().__init__()
        self.layers = resnet18()
        self.norms = nn.ModuleList(nn.BatchNorm2d(layer.out_channels) for layer in self.layers[:-1])

    def forward(self, images):
        units = iter(zip(self.layers[:-1], self.norms, strict=True))

        def unit(x, stride=1):
            layer, norm = next(units)
            pad = layer.kernel_size[0] // 2
            return norm(F.conv2d(x, layer.weight, stride=stride, padding=pad))

        x = F.relu(unit(images))
        for stage in range(4):
            stride = 1 if stage == 0 else 2
            first = unit(F.relu(unit(x, stride)))
            second = [next(units), next(units)]
            short = unit(x, stride) if stage else x
            x = F.relu(first + short)
            inner = x
            for place, (layer, norm) in enumerate(second):
                inner = norm(F.conv2d(inner, layer.weight, padding=1))
                inner = F.relu(inner) if place == 0 else inner
            x = F.relu(x + inner)
        return self.layers[-1](x.mean((2, 3)))


def by_topk(weights, masks, optimizer):
    """The usual implementation: `topk` twice for each layer, float masks."""
    for weight, mask in zip(weights, masks, strict=True):
        kept = int(mask.sum())
        count = round(SHARE * kept)
        scores = torch.where(mask > 0, weight.detach().abs(), -1.0).flatten()
        survivors = torch.zeros_like(scores)
        survivors[scores.topk(kept - count).indices] = 1
        growth = torch.where(survivors > 0, -1.0, weight.grad.abs().flatten())
        survivors[growth.topk(count).indices] = 1
        mask.copy_(survivors.view_as(mask))
        weight.data.mul_(mask)
        weight.grad.mul_(mask)
        optimizer.state[weight]["momentum_buffer"].mul_(mask)


def measured(memory, rounds):
    """Seconds of each variant, with weights and images in a memory format."""
    torch.manual_seed(0)
    model = ResNet18().to(memory_format=memory)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS).to(memory_format=memory)
    labels = torch.arange(BATCH)
    pruner = Pruner(model, PruningConfig(distribution="erk"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    pruner.enforcer.hook(optimizer)
    weights = [target.parameter for target in pruner.targets]

    def backward():
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    def step():
        backward()
        pruner.enforcer.gradients()
        optimizer.step()

    step()
    draw_masks(pruner, SPARSITY, [optimizer])
    masks = [pruner.enforcer.mask(target.name).float() for target in pruner.targets]
    backward()
    dense = [weight.grad.clone() for weight in weights]

    def fresh(act):
        """The same dense gradients before each update."""
        for weight, grad in zip(weights, dense, strict=True):
            weight.grad = grad.clone(memory_format=torch.preserve_format)
        return act

    return interleaved(
        {
            OURS: lambda: fresh(lambda: drop_and_grow(pruner, SHARE, optimizers=[optimizer])),
            TOPK: lambda: fresh(lambda: by_topk(weights, masks, optimizer)),
            STEP: lambda: step,
        },
        rounds,
    )


def main():
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    rows, claims = [], {}
    for memory in (torch.contiguous_format, torch.channels_last):
        found = measured(memory, options.rounds)
        words = str(memory).removeprefix("torch.").removesuffix("_format")
        for name in (OURS, TOPK, STEP):
            cost = 100 * ratio(found, name, STEP) / EVERY
            rows.append(
                {
                    "weights": words,
                    "variant": name,
                    "ms": 1e3 * statistics.median(found[name]),
                    f"% of training, every {EVERY} steps": "" if name == STEP else cost,
                }
            )
            if name == OURS:
                claims[f"% of training at batch {BATCH}, {words}"] = (cost, 0.5)
    title = f"One update of RigL, 11 million weights, sparsity {SPARSITY}"
    show(title, rows, claims, options.out)


if __name__ == "__main__":
    main()
