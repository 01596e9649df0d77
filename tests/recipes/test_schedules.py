# SPDX-License-Identifier: MIT
"""Learning rates and events of the recipes after papers, against the papers' own numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
from omegaconf import DictConfig, OmegaConf
from short_recipe_fits import RESNET18, job, planned, tiny

from regrow.app.config.recipes import load, recipe_files
from regrow.app.training.build import build_pruning
from regrow.schedules.base import Milestone
from regrow.schedules.time import Timeline

pytestmark = pytest.mark.filterwarnings("ignore:.*")


class Rates(NamedTuple):
    """What a paper says: the rate of the schedule's epochs or steps, and how long it lasts."""

    first: float
    drops: tuple[int, ...]
    factor: float
    whole: int  # what the drops are counted in
    epochs: int  # of one schedule
    warmup: int = 0


RENDA = Rates(0.1, (91, 136), 0.1, 182, 182)
OPEN_LTH = Rates(0.1, (80, 120), 0.1, 160, 160)
SUNDAR = Rates(0.1, (30000, 60000, 90000), 0.2, 97656, 250)
DEPGRAPH = Rates(0.01, (60, 75, 90), 0.1, 100, 100)
IMAGENET = Rates(0.4, (30, 60, 80), 0.1, 90, 90, warmup=5)
EVCI = Rates(1.6, (30, 70, 90), 0.1, 102, 102, warmup=5)
RATES = {
    **{f"cifar10/resnet20_{kind}": RENDA for kind in ("dense", "imp", "lr_rewind", "gmp")},
    **{f"cifar10/resnet56_{kind}": RENDA for kind in ("dense", "lr_rewind")},
    **{f"cifar10/wrn22_2_{kind}": SUNDAR for kind in ("dense", "gmp", "rigl", "set")},
    **{f"imagenet/resnet50_{kind}": IMAGENET for kind in ("dense", "lr_rewind", "two_four")},
    "cifar10/resnet56_channel": DEPGRAPH,
    "cifar100/vgg19_channel": DEPGRAPH,
    "cifar10/resnet20_cs": Rates(0.1, (56, 71), 0.1, 85, 85),
    "cifar10/vgg16_imp": OPEN_LTH,
    "cifar10/vgg19_grasp": OPEN_LTH,
    "cifar100/vgg16_synflow": Rates(0.1, (60, 120), 0.1, 160, 160),
    "cifar100/wrn28_10_acdc": Rates(0.08, (76, 116, 156), 0.1, 200, 200),
    "cifar100/vgg19_imp": OPEN_LTH,
    "cifar10/vgg16_channel": Rates(0.001, (20, 30), 0.1, 40, 40),
    "imagenet/resnet50_channel": Rates(0.01, (30, 60), 0.1, 90, 90),
    "imagenet/resnet50_gmp": Rates(0.4, (30, 60, 80), 0.1, 90, 102, warmup=5),
    **{f"imagenet/resnet50_{kind}": EVCI for kind in ("rigl", "snip", "random_erk")},
}
WARMED = {  # weight decay; all else is shared
    "imagenet/resnet50_acdc": 3.05e-5,
    "imagenet/resnet50_edge_popup": 3.05e-5,
    "imagenet/resnet50_str": 2.25e-5,
}
COSINE = {"imagenet/mobilenet_v2_gmp", *WARMED}


def trains(recipe: DictConfig) -> bool:
    """Whether a recipe trains the pruned network."""
    return OmegaConf.select(recipe, "trainer.max_epochs") != 0


def test_every_recipe_of_a_paper_is_checked() -> None:
    trained = {name for name, path in recipe_files().items() if trains(load(path))}
    after = {name for name in trained if name.startswith(("cifar", "imagenet"))}
    assert after == {*RATES, *COSINE}


@pytest.mark.vision
@pytest.mark.parametrize("name", RATES)
def test_learning_rates_follow_the_papers(name: str, small_data: Path, tmp_path: Path) -> None:
    """Step by step over one schedule: exactly, where the paper counts in epochs."""
    said = RATES[name]
    words = [*RESNET18] if "resnet50" in name else []
    if said is EVCI:  # an epoch of the small data has too few steps for it
        words += ["trainer.accumulate_grad_batches=1"]
    cfg = job(f"recipe={name}", *tiny(name, small_data), *words)
    trainer = planned(cfg, tmp_path)
    steps = -(-trainer.num_training_batches // cfg.trainer.accumulate_grad_batches)
    total = steps * said.epochs
    schedule = trainer.lr_scheduler_configs[0].scheduler
    schedule = getattr(schedule, "scheduler", schedule)  # of one round, if the fit rewinds
    assert schedule.base_lrs == [said.first]
    wrong = []
    for step in range(total):
        place = Fraction(step * said.whole, total)
        rate = said.factor ** sum(place >= drop for drop in said.drops)
        if place < said.warmup:
            rate = float(Fraction(step + 1, total) * said.whole / said.warmup)
        if schedule.lr_lambdas[0](step) != pytest.approx(rate):
            wrong.append(step)
    exact = (said.epochs * said.drops[0]) % said.whole == 0
    assert len(wrong) <= (0 if exact else len(said.drops) + 1), wrong
    # nothing changes after it: fits that rewind have a schedule as long as a round
    assert schedule.lr_lambdas[0](10 * total) == schedule.lr_lambdas[0](total - 1)


@pytest.mark.vision
@pytest.mark.parametrize("name", WARMED)
def test_cosine_schedules_follow_the_papers(name: str, small_data: Path, tmp_path: Path) -> None:
    """100 epochs, 5 of warm-up: what the paper has at an epoch's first step."""
    cfg = job(f"recipe={name}", *tiny(name, small_data), *RESNET18)
    trainer = planned(cfg, tmp_path)
    each, (group,) = trainer.num_training_batches, trainer.optimizers[0].param_groups
    assert (group["momentum"], group["nesterov"], cfg.data.batch_size) == (0.875, False, 2)
    assert group["weight_decay"] == pytest.approx(WARMED[name], rel=2e-3)
    assert job(f"recipe={name}").data.batch_size == 256
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert (schedule.base_lrs, cfg.trainer.max_epochs) == ([0.256], 100)
    for epoch in range(5):
        assert schedule.lr_lambdas[0](each * (epoch + 1) - 1) == pytest.approx((epoch + 1) / 5)
    for epoch in range(5, 100):
        rate = (1 + math.cos(math.pi * (epoch - 5) / 95)) / 2
        assert schedule.lr_lambdas[0](each * epoch) == pytest.approx(rate)


ROUNDS = {  # the first round, each later one, how many, and what 0.8 to that power leaves
    "cifar10/resnet20_imp": (182, 179, 10, 0.1074),
    "cifar10/resnet20_lr_rewind": (182, 182, 10, 0.1074),
    "cifar10/resnet56_lr_rewind": (182, 182, 13, 0.0550),
    "cifar10/vgg16_imp": (160, 157, 20, 0.0115),
    "cifar100/vgg19_imp": (160, 157, 10, 0.1074),
    "imagenet/resnet50_lr_rewind": (90, 90, 7, 0.2097),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_remove_a_fifth_and_fill_the_fit(name: str) -> None:
    first, later, count, left = ROUNDS[name]
    cfg, steps = job(f"recipe={name}"), 352
    pruning = build_pruning(cfg)
    plan = pruning.resolve(Timeline(cfg.trainer.max_epochs * steps, steps))
    assert [m.step for m in plan] == [steps * (first + later * k) for k in range(count)]
    assert cfg.trainer.max_epochs == first + later * count
    for k, milestone in enumerate(plan):
        assert 1 - milestone.sparsity == pytest.approx(0.8 ** (k + 1), abs=2e-4)
    assert 1 - pruning.final == pytest.approx(left, abs=2e-4)
    back = {"0it": 0, "3ep": 3}[str(pruning.children[0].to)]
    assert first - back == later, "every round ends with the schedule"


def test_gradual_events_are_at_the_times_of_the_papers() -> None:
    gale = build_pruning(job("recipe=imagenet/resnet50_gmp")).resolve(Timeline(128000, 1251))
    assert [m.step for m in gale] == list(range(42000, 100001, 2000))  # 0 of the cubic at 40000
    sundar = build_pruning(job("recipe=cifar10/wrn22_2_gmp")).resolve(Timeline(88000, 352))
    assert (sundar[0].step, sundar[-1].step) == (pytest.approx(800, abs=5), 65912)
    assert sundar[1].step - sundar[0].step == pytest.approx(100, abs=1)
    assert [gale[-1].sparsity, sundar[-1].sparsity] == [0.8, 0.8]


def test_sparse_training_updates_end_at_the_times_of_the_papers() -> None:
    rigl = build_pruning(job("recipe=imagenet/resnet50_rigl")).resolve(Timeline(32000, 313))
    assert [m.step for m in rigl][:3] == [0, 100, 200]
    assert rigl[-1].step in (24900, 25000)
    wide = build_pruning(job("recipe=cifar10/wrn22_2_rigl")).resolve(Timeline(88000, 352))
    assert wide[-1].step == pytest.approx(66000, abs=100)
    assert {m.sparsity for m in (*rigl, *wide)} == {0.8}


PHASES = {  # epochs; where sparse ones begin, where dense ones do, and steps of an epoch
    "imagenet/resnet50_acdc": ((*range(10, 71, 10), 85), range(15, 76, 10), 4955),
    "cifar100/wrn28_10_acdc": (range(10, 171, 40), range(30, 151, 40), 352),
}


@pytest.mark.parametrize("name", PHASES)
def test_phases_alternate_at_the_times_of_the_papers(name: str) -> None:
    sparse, dense, each = PHASES[name]
    cfg = job(f"recipe={name}")
    plan = build_pruning(cfg).resolve(Timeline(cfg.trainer.max_epochs * each, each))
    assert [m.step / each for m in plan if m.sparsity == 0.9] == [*sparse]
    assert [m.step / each for m in plan if m.sparsity == 0] == [*dense]
    assert cfg.callbacks.alternating_phases.reset_optimizer == "dense"  # momentum is reset


ONCE = {  # the step of 1,000, and the sparsity
    "imagenet/resnet50_snip": (0, 0.8),
    "imagenet/resnet50_random_erk": (0, 0.8),
    "cifar10/vgg19_grasp": (0, 0.98),
    "cifar100/vgg16_synflow": (0, 0.99),
    "imagenet/resnet50_str": (900, 0.9023),
    "imagenet/resnet50_edge_popup": (950, 0.7),
    "cifar10/resnet20_cs": (900, 0.8),
}


@pytest.mark.parametrize("name", ONCE)
def test_one_event_recipes_have_their_event_at_the_right_step(name: str) -> None:
    plan = build_pruning(job(f"recipe={name}")).resolve(Timeline(1000, 10))
    assert plan == (Milestone(*ONCE[name]),)
