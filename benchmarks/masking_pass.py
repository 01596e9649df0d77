# SPDX-License-Identifier: MIT
"""Claim: masking weights costs one pass over them at memory speed.

One masking pass takes at most 1.2 times a `copy_` of the same tensors, and it turns NaN and Inf
into zero, which multiplying by a mask does not.
"""

import statistics

import torch
from _bench import arguments, interleaved, lenet, ratio, resnet18, show

from regrow.pruning.enforcer import MaskEnforcer

OURS, COPY, NAIVE, FLOAT = "regrow MaskEnforcer", "copy_", "bool mul_ loop", "float mul_ loop"


def variants(layers, passes):
    torch.manual_seed(0)
    parameters = dict(layers.named_parameters())
    enforcer = MaskEnforcer(parameters)
    weights = [parameter.detach() for parameter in parameters.values()]
    masks = [torch.rand(weight.shape) > 0.9 for weight in weights]
    for name, mask in zip(parameters, masks, strict=True):
        enforcer.set_mask(name, mask)
    sources = [weight.clone() for weight in weights]
    floats = [mask.float() for mask in masks]

    def repeated(step):
        def run():
            for _ in range(passes):
                step()

        return lambda: run

    def copy():
        for weight, source in zip(weights, sources, strict=True):
            weight.copy_(source)

    def multiply(by):
        for weight, mask in zip(weights, by, strict=True):
            weight.mul_(mask)

    return {
        OURS: repeated(enforcer.weights),
        COPY: repeated(copy),
        FLOAT: repeated(lambda: multiply(floats)),
        NAIVE: repeated(lambda: multiply(masks)),
    }


def main():
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    rows, claims = [], {}
    for network, layers, passes in (("LeNet-300-100", lenet(), 500), ("ResNet-18", resnet18(), 10)):
        total = sum(parameter.numel() for parameter in layers.parameters())
        found = interleaved(variants(layers, passes), options.rounds)
        for name, seconds in found.items():
            rows.append(
                {
                    "network": network,
                    "weights": total,
                    "variant": name,
                    "microseconds a pass": 1e6 * statistics.median(seconds) / passes,
                    "time / copy_": ratio(found, name, COPY),
                }
            )
        claims[f"{network}: {OURS} / copy_"] = (ratio(found, OURS, COPY), 1.2)
    show("One masking pass over float32 weights, one thread", rows, claims, options.out)


if __name__ == "__main__":
    main()
