# SPDX-License-Identifier: MIT
"""Claim: pruning and int8 add up: a pruned network loses no more by int8 than a dense one.

LeNet-5 on Fashion-MNIST is trained dense, with 98 % of its weights masked (gmp), the same with fake
quantization of its Linear layers (int8), and with channels removed. Each is exported to ONNX in
float32 and, calibrated on training images, in int8. Accuracy on the test set, size of the file, and
speed against the dense network in float32, all by ONNX Runtime in the same run: medians in turns
with their 95 % interval. Zeros make no kernel of ONNX Runtime faster; removed channels and int8 do.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from _bench import Row, arguments, show

from regrow.app.experiment.load_run import load_run
from regrow.app.training.build import build_data
from regrow.io.files import read_json
from regrow.io.onnx_network import OnnxNetwork
from regrow.profiling.latency import compare_latency

NETWORKS = {
    "dense": "lenet5_dense",
    "masked": "lenet5_gmp",
    "masked, trained for int8": "lenet5_int8",
    "channels": "lenet5_channel",
}
MOST = 0.005  # what int8 may cost a pruned network beyond what it costs the dense one


def trained(folder: Path, words: list[str]) -> dict[str, Path]:
    """Train what is missing; return checkpoints by name."""
    recipes = ",".join(f"fashion_mnist/{recipe}" for recipe in NETWORKS.values())
    command = [sys.executable, "-m", "regrow", "train", "-m", f"recipe={recipes}"]
    where = [f"hydra.sweep.dir={folder}", f"paths.controls={folder / 'controls'}"]
    subprocess.run([*command, *where, *words], check=True)
    found = {}
    for name, recipe in NETWORKS.items():
        [file] = (folder / "fashion_mnist" / recipe).rglob("result.json")
        found[name] = file.parent / read_json(file)["checkpoint"]
    return found


def exported(name: str, checkpoint: Path, folder: Path) -> dict[str, Path]:
    """Return the files in float32 and int8."""
    out = folder / f"{name}.onnx"
    command = [sys.executable, "-m", "regrow", "export", str(checkpoint), "--to", "onnx", "--int8"]
    subprocess.run([*command, "--out", str(out)], check=True)
    return {"float32": out, "int8": out.with_suffix(".int8.onnx")}


def accuracy(network: OnnxNetwork, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    right = sum(int((network(x).argmax(1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmarks/int8"))
    parser.add_argument("words", nargs="*", help="settings such as trainer.max_epochs=1")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.folder.absolute()
    checkpoints = trained(folder, options.words)
    cfg, _ = load_run(checkpoints["dense"])
    data = build_data(cfg)
    data.prepare_data()
    data.setup("test")
    batches = [(x, y) for x, y in data.test_dataloader()]
    files = {
        (name, kind): file
        for name, checkpoint in checkpoints.items()
        for kind, file in exported(name, checkpoint, folder).items()
    }
    reference = OnnxNetwork(files["dense", "float32"])
    rows: list[Row] = []
    for (name, kind), file in files.items():
        network = OnnxNetwork(file)
        row: Row = {"network": name, "type": kind, "accuracy": accuracy(network, batches)}
        row["bytes"] = file.stat().st_size
        for batch in (1, 32):
            given = batches[0][0][:batch]
            repeats = 20 * options.rounds
            timed = compare_latency(reference, network, given, repeats=repeats)
            row[f"speed, batch {batch}"] = str(timed.speedup)
        rows.append(row)
    lost = {
        name: next(r["accuracy"] for r in rows if r["network"] == name and r["type"] == "float32")
        - next(r["accuracy"] for r in rows if r["network"] == name and r["type"] == "int8")
        for name in NETWORKS
    }
    claims = {
        f"lost by int8, {name}, beyond what dense loses": (lost[name] - lost["dense"], MOST)
        for name in NETWORKS
        if name != "dense"
    }
    show("Pruned, then int8", rows, claims, options.out)


if __name__ == "__main__":
    main()
