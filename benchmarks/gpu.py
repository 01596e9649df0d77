# SPDX-License-Identifier: MIT
"""Claim: on a GPU, masks cost at most 1 % of a training step and an event at most three reads.

    python benchmarks/gpu.py [--device cpu --small]

On one card, by wall clock around work that is waited for, all variants in turns:

- training steps of torchvision's ResNet-50 and ViT-B in bfloat16 with fused AdamW, with masks of
  80 % of the weights and without, beside a second dense network as null control;
- an event on 100 million weights that prunes 80 % of them, and one read of the weights;
- ViT-B's MLP with 2:4 weights in bfloat16, made faster by `accelerate`;
- ResNet-50 with channels cut to 70 % of its latency, measured again.

Without a CUDA device it prints a sentence and ends; `--device cpu --small` only tries the program.
"""

import statistics
import sys
import time

import torch
from _bench import Row, arguments, interleaved, ratio, show
from _vision import build, needed
from torch import nn

import regrow
from regrow.profiling.latency import compare_latency, latency

DENSE, AGAIN, BASE = "dense", "dense again (null control)", "mean of both dense"
MASKED, SPARSITY, STEPS, BUDGET = "80 % masked", 0.8, 5, 0.7
READ, EVENT = "one read (sum)", "an event"
NETWORKS = {"resnet50": 128, "vit_b_16": 64}  # and their batches


def wait(device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def row(what, variant, seconds, against) -> Row:
    milliseconds = 1e3 * statistics.median(seconds)
    return {"what": what, "variant": variant, "milliseconds": milliseconds, "ratio": against}


def make_steps(name, device, batch, pixels, sparsity):
    """A function that trains a network for some steps, and waits for the device."""
    given = {"image_size": pixels} if name.startswith("vit") else {}
    net = build("torchvision", name, **given).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    if sparsity:
        regrow.enforce(net, regrow.prune(net, sparsity), optimizer)
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    labels = torch.randint(1000, (batch,), device=device)

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
        wait(device)

    return run


def time_steps(name, device, batch, pixels, rounds):
    variants = {}
    for variant in (DENSE, MASKED, AGAIN):
        run = make_steps(name, device, batch, pixels, SPARSITY if variant == MASKED else 0)
        variants[variant] = lambda run=run: run
    found = interleaved(variants, rounds, time.perf_counter)
    controls = zip(found[DENSE], found[AGAIN], strict=True)
    found[BASE] = [(one + other) / 2 for one, other in controls]
    what = f"{STEPS} steps of {name}, {batch} images of {pixels} pixels"
    rows = [row(what, variant, found[variant], ratio(found, variant, BASE)) for variant in variants]
    return rows, ratio(found, MASKED, BASE)


def time_event(device, millions, rounds):
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(2000, 2000, bias=False) for _ in range(millions // 4))
    layers.to(device)
    sources = [parameter.detach().clone() for parameter in layers.parameters()]

    def event():
        for parameter, source in zip(layers.parameters(), sources, strict=True):
            parameter.data.copy_(source)
        pruner = regrow.Pruner(layers)
        wait(device)

        def run():
            pruner.prune_to(SPARSITY)
            wait(device)

        return run

    def read():
        for source in sources:
            source.sum()
        wait(device)

    found = interleaved({READ: lambda: read, EVENT: event}, rounds, time.perf_counter)
    what = f"{millions} million weights"
    rows = [row(what, name, found[name], ratio(found, name, READ)) for name in found]
    return rows, ratio(found, EVENT, READ)


def time_two_four(device, positions, rounds):
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
    mlp.to(device, torch.bfloat16).eval()
    regrow.prune(mlp, 0.5, granularity="2:4")
    x = torch.randn(positions, 768, device=device, dtype=torch.bfloat16)
    dense = latency(mlp, x, repeats=rounds).median_ms
    result = regrow.accelerate(mlp, x, tolerance=1e-2, repeats=max(30, rounds))
    print(result)
    fast = latency(mlp, x, repeats=rounds).median_ms
    what = f"MLP of ViT-B, 2:4, {positions} positions"
    forms = ", ".join(choice.form for choice in result.layers)
    against = 1.0 if result.speedup is None else 1 / result.speedup.ratio
    return [row(what, DENSE, [dense / 1e3], 1.0), row(what, forms, [fast / 1e3], against)]


def time_budget(device, batch, pixels, rounds):
    net = build("torchvision", "resnet50").to(device)
    dense = build("torchvision", "resnet50").to(device)
    x = torch.randn(batch, 3, pixels, pixels, device=device)
    budget = BUDGET * latency(net, x, repeats=rounds).median_ms
    regrow.channels.prune(net, x, of="latency", latency_ms=budget)
    found = compare_latency(dense, net, x, repeats=max(10, rounds))
    what = f"ResNet-50 cut to {BUDGET:.0%} of its latency, {batch} images"
    share = found.model.median_ms / found.reference.median_ms
    rows = [
        row(what, DENSE, [found.reference.median_ms / 1e3], 1.0),
        row(what, "cut", [found.model.median_ms / 1e3], share),
    ]
    return rows, share / BUDGET


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the program")
    parser.add_argument("--small", action="store_true", help="small batches and images")
    options = parser.parse_args()
    needed("torchvision")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("left out, as no CUDA device was found; `--device cpu --small` tries the program")
        sys.exit(0)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    pixels, rounds = (64 if options.small else 224), options.rounds
    rows, claims = [], {}
    for name, batch in NETWORKS.items():
        more, cost = time_steps(name, device, 2 if options.small else batch, pixels, rounds)
        rows += more
        claims[f"step of {name}, {MASKED} / {BASE}"] = (cost, 1.01)
    more, reads = time_event(device, 4 if options.small else 100, rounds)
    rows += more
    claims["an event / one read of the weights"] = (reads, 3)
    rows += time_two_four(device, 64 if options.small else 64 * 197, rounds)
    more, over = time_budget(device, 2 if options.small else 32, pixels, rounds)
    rows += more
    claims["latency of the cut network / its budget"] = (over, 1.05)
    show(f"On {card}", rows, claims, options.out)


if __name__ == "__main__":
    main()
