# SPDX-License-Identifier: MIT
"""Random networks lose channels in a short fit: cut out or only masked, they compute the same."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from fuzz_fits import OPTIMIZERS, Fit, steady
from fuzz_networks import Dense, data, networks
from fuzz_run import Run, Save, default_dtype, made, refusals
from fuzz_sizes import few, many
from hypothesis import event, given
from hypothesis import strategies as st
from tiny_fits import equal, read


@st.composite
def cutting(draw):
    """A fit that prunes channels."""
    batches, epochs = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    total = batches * epochs
    kind, times = draw(steady(total))
    arguments = {
        "sparsity": draw(st.floats(0.05, 0.8)),
        "of": draw(st.sampled_from(["channels", "macs", "params"])),
        "schedule": (kind, times),
        "criterion": draw(st.sampled_from(["l1", "l2", "fpgm", "random"])),
        "distribution": draw(st.sampled_from(["global", "uniform"])),
        "round_to": draw(st.sampled_from([1, 1, 2, "auto"])),
        "compact": draw(st.sampled_from(["end", "event"])),
        "seed": draw(st.integers(0, 3)),
    }
    network = draw(networks)
    if isinstance(network, Dense):
        network = replace(network, double=False, widths=tuple(w + 1 for w in network.widths))
    names = sorted({*OPTIMIZERS} - {"LBFGS", "fused"})
    return Fit(
        network=network,
        optimizer=draw(st.sampled_from(names)),
        split=draw(st.booleans()),
        pruners=(("ChannelPruning", arguments),),
        batches=batches,
        epochs=epochs,
        kill=draw(st.integers(1, max(1, total - 1))),
    )


def output(run):
    run.module.eval()
    with torch.no_grad():
        return run.module(data(run.spec.network, 4)[0])


def check(spec, folder):
    [(name, arguments)] = spec.pruners
    masked = replace(spec, pruners=((name, arguments | {"compact": None}),))
    whole, small = made(masked, watched=False), made(spec, watched=False)
    if whole is None or small is None:
        assert whole is small, "whether a callback is refused does not depend on compact"
        return event("refused when made")
    with refusals(whole):
        whole.fit()
    saved = folder / "cut.ckpt"
    with refusals(small):
        small.fit(Save(spec.kill, saved))
    assert (whole.error is None) == (small.error is None)
    if small.error:
        return event("refused by the fit")
    [pruning] = small.pruners
    event(f"{arguments['compact']}: {len(pruning.history)} entries")
    # until then both train alike; a mean over channels counts those that are zero
    if arguments["compact"] == "end" and spec.network.norm != "layer":
        assert torch.allclose(output(whole), output(small), atol=1e-5)
        assert equal(whole.pruners[0].history, pruning.history[: len(whole.pruners[0].history)])
    sizes = [sum(p.numel() for p in run.module.parameters()) for run in (whole, small)]
    assert sizes[1] <= sizes[0]
    assert output(small).isfinite().all()
    if saved.exists():
        with default_dtype():
            again = Run(spec, watched=False).fit(ckpt_path=saved)
        for run, path in ((small, folder / "a.ckpt"), (again, folder / "b.ckpt")):
            run.trainer.save_checkpoint(path)
        one, other = read(folder / "a.ckpt"), read(folder / "b.ckpt")
        for key in ("state_dict", "optimizer_states", "global_step"):
            assert equal(one[key], other[key]), key
    return None


@few(4)
@given(cutting())
def test_random_channel_fits_keep_the_promises(spec):
    with TemporaryDirectory() as folder:
        check(spec, Path(folder))


@pytest.mark.slow
@many(150)
@given(cutting())
def test_random_channel_fits_keep_the_promises_many_times(spec):
    with TemporaryDirectory() as folder:
        check(spec, Path(folder))
