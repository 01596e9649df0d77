# SPDX-License-Identifier: MIT
"""Cases of the callbacks: name -> what computes its record. Each fit is cut and resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from golden_digests import digest
from golden_fits import ADAM, ADAMW, IMAGE, Judge, Manual, Net, dense, image_net, quiet, resumed
from golden_plain import PLAIN
from golden_recipes import RECIPES
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging

import regrow
from regrow import ChannelPruning, DynamicSparseTraining, LearnedMasks, MagnitudePruning

Case = Callable[[], dict[str, Any]]
# Steps of a fit of five epochs with eight batches each; the fit is cut after step 21.
LEVELS = {"5it": 0.3, "13it": 0.5, "27it": 0.8}
TIMES = {"begin": "4it", "end": "30it", "every": "5it"}


def average(name: str, **kw: Any) -> Any:
    """An averaging callback; Lightning 2.5 has none, and its cases are skipped."""
    return getattr(pytest.importorskip("lightning.pytorch.callbacks.weight_averaging"), name)(**kw)


EMA = partial(average, "EMAWeightAveraging", decay=0.9)


def table() -> Any:
    return regrow.Table(LEVELS)


def one(kind: Callable[..., Any], *args: Any, **kw: Any) -> Callable[[], list[Any]]:
    """Makes one callback."""
    return lambda: [regrow.RandomState(), kind(*args, **kw)]


def magnitude(sparsity: float = 0.8, **kw: Any) -> Callable[[], list[Any]]:
    kw = {"schedule": table()} | kw if "begin" not in kw else kw
    return one(MagnitudePruning, sparsity, **kw)


def beside(make: Callable[[], Any], **kw: Any) -> Callable[[], list[Any]]:
    """Magnitude pruning, and another callback beside it."""
    return lambda: [*magnitude(**kw)(), make()]


def pruning_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for word in ("global", "uniform", "erk", "lamp"):
        cases[f"magnitude/{word}"] = partial(resumed, magnitude(distribution=word))
    for word in ("random", "gradient", "taylor", "snip", "movement"):
        cases[f"criterion/{word}"] = partial(resumed, magnitude(criterion=word))
    settings: dict[str, dict[str, Any]] = {
        "2:4": {"sparsity": 0.5, "granularity": "2:4", **TIMES},
        "blocks": {"granularity": "block:4x4"},
        "layers": {"layers": {"body.0": 0.5}, "exclude": ["@last"]},
        "soft": {"soft": True},
        "movement_soft": {"criterion": "movement", "soft": True},
        "keep_moments": {"keep_removed": "moments"},
        "keep_nothing": {"keep_removed": False},
        "callable": {"criterion": square},
    }
    for name, kw in settings.items():
        cases[f"magnitude/{name}"] = partial(resumed, magnitude(**kw))
    cases["magnitude/images_erk"] = partial(
        resumed, magnitude(distribution="erk"), image_net, shape=IMAGE
    )
    cases["magnitude/adam"] = partial(resumed, magnitude(), partial(Net, optimizer=ADAM))
    cases["magnitude/adamw_moments"] = partial(
        resumed, magnitude(keep_removed="moments"), partial(Net, optimizer=ADAMW)
    )
    cases["magnitude/clipped_accumulated"] = partial(
        resumed,
        magnitude(schedule=regrow.Table({"3it": 0.4, "11it": 0.7, "17it": 0.8})),
        cut=9,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
    )
    cases["magnitude/manual"] = partial(resumed, magnitude(**TIMES), Manual, cut=42)
    cases["magnitude/two_pruners"] = partial(resumed, two_pruners)
    return cases


def square(weight: torch.Tensor, grad: torch.Tensor | None) -> torch.Tensor:
    assert grad is not None  # read, so that events wait for gradients
    return weight.square()


def two_pruners() -> list[Any]:
    return [
        MagnitudePruning(0.5, include=["body.0"], **TIMES),
        MagnitudePruning(0.7, include=["body.4"], schedule=regrow.Table({"3it": 0.2, "29it": 0.7})),
    ]


def schedule_cases() -> dict[str, Case]:
    names: dict[str, dict[str, Any]] = {
        "one_shot": {"begin": "23it"},
        "linear": TIMES,
        "cubic": TIMES,
        "cosine": TIMES,
        "exponential": {"every": "6it"},
        "cyclic": TIMES,
        "acdc": {"begin": "4it", "end": "34it", "every": "6it"},
    }
    cases: dict[str, Case] = {
        f"schedule/{name}": partial(resumed, one(MagnitudePruning, 0.7, schedule=name, **kw))
        for name, kw in names.items()
    }
    made = {
        "defaults": "cubic",
        "exponential_rounds": regrow.Exponential(rate=0.3, every="6it", rounds=4),
        "cyclic_dense": regrow.Cyclic("4it", "34it", "6it", last="dense"),
        "cosine_fractions": regrow.Cosine(0.1, 0.9, 0.1),
        "one_shot_epoch": regrow.OneShot("3ep"),
    }
    for name, schedule in made.items():
        given = () if name == "exponential_rounds" else (0.7,)
        callbacks = one(MagnitudePruning, *given, schedule=schedule)
        cases[f"schedule/{name}"] = partial(resumed, callbacks)
    return cases


def rewinding_cases() -> dict[str, Case]:
    imp: dict[str, Any] = {"schedule": regrow.Exponential(rate=0.5, every="1ep", rounds=3)}
    own = regrow.Rewind("0it", reinit=3)

    def beside_rewind(what: Any) -> Callable[[], list[Any]]:
        return lambda: [
            regrow.RandomState(), MagnitudePruning(**imp), regrow.Rewind("2it", what=what)
        ]  # fmt: skip

    def scheduled() -> Net:
        module = Net()
        module.rounds = 8
        return module

    cases: dict[str, Case] = {
        "rewind/own": partial(resumed, one(MagnitudePruning, **imp, rewind="5it")),
        "rewind/reinit": partial(resumed, one(MagnitudePruning, **imp, rewind=own)),
        "rewind/adam": partial(
            resumed, one(MagnitudePruning, **imp, rewind="0it"), partial(Net, optimizer=ADAM)
        ),
        "rewind/optimizer": partial(resumed, beside_rewind(["weights", "optimizer"])),
    }
    for what in ("weights", "lr", "finetune"):
        cases[f"rewind/{what}"] = partial(resumed, beside_rewind(what), scheduled)
    cases["rewind/channels"] = partial(
        resumed, channels(rewind="2it"), image_net, shape=IMAGE
    )  # fmt: skip
    return cases


def channels(sparsity: float = 0.5, **kw: Any) -> Callable[[], list[Any]]:
    levels = regrow.Table({"4it": 0.2, "12it": 0.35, "27it": sparsity})
    return one(ChannelPruning, sparsity, **{"schedule": levels, "round_to": 1} | kw)


def channel_cases() -> dict[str, Case]:
    run = partial(resumed, make=image_net, shape=IMAGE)
    cases: dict[str, Case] = {}
    for compact in ("end", "event", None):
        cases[f"channels/compact_{compact}"] = partial(run, channels(compact=compact))
    for of in ("macs", "params"):
        cases[f"channels/{of}"] = partial(run, channels(of=of))
    cases["channels/macs_event"] = partial(
        run, channels(of="macs", compact="event"), make=partial(image_net, ADAM)
    )
    cases["channels/uniform_recalibrated"] = partial(
        run, channels(distribution="uniform", criterion="l1", recalibrate=2)
    )
    cases["channels/taylor"] = partial(run, channels(criterion="taylor"))
    cases["channels/random"] = partial(run, channels(criterion="random", seed=3))
    cases["channels/slimming"] = partial(
        run, lambda: [*channels(criterion="bn", exclude=["hidden"])(), regrow.Slimming(1e-2)]
    )
    cases["channels/latency_timer"] = partial(run, channels(of="latency", timer=parameter_count))
    return cases


def parameter_count(model: torch.nn.Module) -> float:
    """Milliseconds that are none: what a timer gives must not differ from run to run."""
    return float(sum(p.numel() for p in model.parameters()))


def sparse_training_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for grow in ("gradient", "random", "momentum", "none"):
        kw = {"grow": grow, "every": "4it"}
        cases[f"dynamic/{grow}"] = partial(resumed, one(DynamicSparseTraining, 0.8, **kw))
    kw = {"init": "he", "skip_update": True, "distribution": "uniform", "every": "4it"}
    cases["dynamic/he_skipped_uniform"] = partial(
        resumed, one(DynamicSparseTraining, 0.8, **kw), partial(Net, optimizer=ADAMW)
    )
    cases["dynamic/removed"] = partial(
        resumed, one(DynamicSparseTraining, 0.8, every="4it", init="removed", keep_removed=True)
    )
    rules: dict[str, Any] = {name: name for name in ("str", "cs", "l0", "edge_popup")}
    rules["soft_movement"] = regrow.SoftMovement()
    for name, rule in rules.items():
        cases[f"learned/{name}"] = partial(resumed, one(LearnedMasks, rule, 0.7))
    cases["learned/str_after_the_cut"] = partial(
        resumed, one(LearnedMasks, "str", 0.7, begin="23it", end="33it", score_optimizer="sgd")
    )
    cases["learned/l0_cut_late"] = partial(resumed, one(LearnedMasks, "l0", 0.7), cut=35)
    return cases


def at_init_cases() -> dict[str, Case]:
    settings: dict[str, dict[str, Any]] = {
        "snip": {"batches": 3},
        "grasp": {"temperature": 2.0},
        "synflow": {"rounds": 5},
        "random": {"seed": 4},
    }
    cases: dict[str, Case] = {}
    for method, kw in settings.items():
        callbacks = one(regrow.PruneAtInit, 0.7, method=method, **kw)
        cases[f"at_init/{method}"] = partial(resumed, callbacks)
    cases["at_init/snip_images"] = partial(
        resumed, one(regrow.PruneAtInit, 0.7, distribution="erk"), image_net, shape=IMAGE
    )
    return cases


def calibration_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for criterion in ("obs", "wanda", "sparsegpt"):
        callbacks = one(regrow.PostTrainingPruning, 0.6, criterion=criterion, batches=4)
        cases[f"calibration/{criterion}"] = partial(resumed, callbacks)
    cases["calibration/images"] = partial(
        resumed, one(regrow.PostTrainingPruning, 0.6), image_net, shape=IMAGE
    )
    return cases


def threshold_cases() -> dict[str, Case]:
    callbacks = one(MagnitudePruning, threshold=0.1, begin="3it", end="25it", every="5it")
    return {"magnitude/threshold": partial(resumed, callbacks)}


def regrowth_cases() -> dict[str, Case]:
    def run(make: Callable[[], Any] = Net, early: bool = True, **kw: Any) -> Case:
        levels = regrow.Table({"5it": 0.7} if early else LEVELS)
        kw = {"at": ["11it", "25it"], "fraction": 0.4} | kw

        def callbacks() -> list[Any]:
            pruner = MagnitudePruning(schedule=levels, keep_removed="moments")
            return [regrow.RandomState(), pruner, regrow.Regrow(**kw)]

        return partial(resumed, callbacks, make)

    inits = ("zero", "removed", "original", "he", "sparse_he", "kaiming_normal")
    inits += ("kaiming_uniform", "xavier", "survivors")
    cases = {f"regrow/{init}": run(init=init) for init in inits}
    for by in ("gradient", "removed"):
        cases[f"regrow/by_{by}"] = run(by=by, init="zero")
    cases["regrow/train_regrown"] = run(train="regrown")
    cases["regrow/train_patterns"] = run(train=["body.4"], make=partial(Net, optimizer=ADAM))
    cases["regrow/before_more_events"] = run(early=False, by="gradient", count=50, fraction=None)
    drop = regrow.Plateau("val/loss", patience=1, mode="min")
    cases["regrow/plateau"] = run(at=None, when=drop)

    def by_momentum() -> list[Any]:
        pruner = DynamicSparseTraining(0.8, grow="momentum", every="6it")
        return [pruner, regrow.Regrow(["11it", "25it"], 0.2, by="momentum", init="zero")]

    cases["regrow/by_momentum"] = partial(resumed, by_momentum)

    def of_channels() -> list[Any]:
        return [*channels(compact=None)(), regrow.Regrow("14it", count=2, init="he")]

    cases["regrow/channels"] = partial(resumed, of_channels, image_net, shape=IMAGE)
    return cases


class Unprune(Callback):
    """Brings weights back within the fit."""

    def __init__(self, step: int, names: list[str] | None = None) -> None:
        self.step, self.names = step, names

    def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            [pruning] = [c for c in trainer.callbacks if hasattr(c, "prune_to")]
            pruning.unprune(self.names)


def undo_cases() -> dict[str, Case]:
    adam = partial(Net, optimizer=ADAMW)
    cases: dict[str, Case] = {}
    for keep in (True, "moments"):
        for step in (17, 30):  # before the cut, after it
            callbacks = beside(partial(Unprune, step), keep_removed=keep)
            cases[f"undo/{keep}_at_{step}"] = partial(resumed, callbacks, adam)
    names = beside(partial(Unprune, 30, ["body.4"]), soft=True)
    cases["undo/soft_names"] = partial(resumed, names)
    cases["undo/channels"] = partial(
        resumed,
        lambda: [*channels(compact=None)(), Unprune(23)],
        partial(image_net, ADAMW),
        shape=IMAGE,
    )
    moments = magnitude(keep_removed="moments")
    cases["undo/after_the_fit"] = partial(
        resumed, moments, adam, after=lambda made: made[1].unprune()
    )
    cases["undo/regrow_after_the_fit"] = partial(
        resumed, moments, adam, after=lambda made: made[1].regrow(0.3, by="removed", init="he")
    )
    for compact in ("end", "event"):
        cases[f"undo/expand_{compact}"] = partial(
            resumed,
            channels(compact=compact),
            image_net,
            shape=IMAGE,
            after=lambda made: made[1].expand(),
        )
    return cases


def budget_cases() -> dict[str, Case]:
    def weights() -> list[Any]:
        pruner = MagnitudePruning(schedule=regrow.Table({"2ep": 0.4, "4ep": 0.8}))
        return [pruner, regrow.AccuracyBudget("acc", max_drop=0.1, resolution=0.1)]

    def with_channels() -> list[Any]:
        levels = regrow.Table({"2ep": 0.3, "4ep": 0.7})
        pruner = ChannelPruning(schedule=levels, round_to=1, compact="event")
        return [pruner, regrow.AccuracyBudget("acc", max_drop=0.1, resolution=0.1)]

    judge = partial(Judge, optimizer=ADAM)
    cases: dict[str, Case] = {
        f"budget/cut_at_{cut}": partial(resumed, weights, judge, cut=cut, max_epochs=11)
        for cut in (21, 37, 44)  # dense or judged; while a loss is open; after the rollback
    }
    cases["budget/channels"] = partial(
        resumed, with_channels, partial(Judge, dense), cut=44, max_epochs=11
    )
    return cases


def company_cases() -> dict[str, Case]:
    teacher = Net(seed=5).body

    def averaged(make: Callable[[], Any], **kw: Any) -> Case:
        return partial(resumed, beside(make, **kw))

    def phases() -> list[Any]:
        acdc = regrow.ACDC("4it", "34it", "6it")
        return [MagnitudePruning(0.7, schedule=acdc), regrow.AlternatingPhases("both")]

    def ema_dynamic() -> list[Any]:
        return [DynamicSparseTraining(0.8, every="4it"), EMA()]

    def stopping() -> Any:
        return regrow.SparseEarlyStopping("val/loss", patience=1, mode="min", min_delta=10.0)

    def keeping() -> Any:
        return regrow.SparseModelCheckpoint("kept", monitor="val/loss", every_n_epochs=1)

    distill = partial(regrow.Distill, teacher, network="body", temperature=3.0, weight=0.7)
    return {
        "distill/logits": partial(resumed, beside(distill), logs=True),
        "distill/head": partial(resumed, beside(partial(distill, logits="body.6"))),
        "phases/acdc": partial(resumed, phases, partial(Net, optimizer=ADAM), logs=True),
        "monitor/weights": partial(resumed, beside(regrow.SparsityMonitor), logs=True),
        "monitor/dynamic": partial(
            resumed,
            lambda: [DynamicSparseTraining(0.8, every="4it"), regrow.SparsityMonitor()],
            logs=True,
        ),
        "stopping/early": partial(resumed, beside(stopping), seen=stopped_at, max_epochs=9),
        "stopping/checkpoint": partial(resumed, beside(keeping), seen=kept_files),
        "average/ema": averaged(EMA),
        "average/ema_soft": averaged(EMA, soft=True),
        "average/mean": averaged(partial(average, "WeightAveraging")),
        "average/swa": averaged(partial(StochasticWeightAveraging, 0.05, swa_epoch_start=4)),
        "average/ema_dynamic": partial(resumed, ema_dynamic),
        "average/ema_channels": partial(
            resumed,
            lambda: [*channels()(), EMA()],
            image_net,
            shape=IMAGE,
        ),
    }


def stopped_at(made: list[Any]) -> Any:
    [found] = [c for c in made if isinstance(c, regrow.SparseEarlyStopping)]
    return [found.stopped_epoch, found.wait_count, float(found.best_score)]


def kept_files(made: list[Any]) -> Any:
    [found] = [c for c in made if isinstance(c, regrow.SparseModelCheckpoint)]
    best = torch.load(found.best_model_path, weights_only=True)["state_dict"]
    names = sorted(os.listdir(os.path.dirname(found.best_model_path)))
    return [names, float(found.best_model_score), digest(sorted(best.items()))]


CASES: dict[str, Case] = (
    pruning_cases()
    | schedule_cases()
    | rewinding_cases()
    | channel_cases()
    | sparse_training_cases()
    | at_init_cases()
    | calibration_cases()
    | threshold_cases()
    | regrowth_cases()
    | undo_cases()
    | budget_cases()
    | company_cases()
    | PLAIN
    | RECIPES
)


def compute(name: str) -> dict[str, Any]:
    """The record of one case, as computed now."""
    with quiet():
        return CASES[name]()
