# SPDX-License-Identifier: MIT
"""Hypothesis strategies for command lines of `regrow train`, valid and invalid."""

from functools import cache

from hydra import compose, initialize_config_dir
from hypothesis import strategies as st
from omegaconf import OmegaConf

from regrow.app.config.recipes import recipe_files, register
from regrow.utils.paths import config_dir

RECIPES = sorted(name for name in recipe_files() if name.startswith("digits/"))
# a few steps of few images; whatever else is written, the fit ends
QUICK = (
    "trainer.max_epochs=2",
    "+trainer.max_steps=6",
    "+trainer.limit_train_batches=3",
    "+trainer.limit_val_batches=1",
    "+trainer.limit_test_batches=1",
    "latency.repeats=2",
    "~callbacks.progress",
    "+trainer.enable_progress_bar=false",
)
SHORT = {  # of schedules that are too long for that
    "imp": ("pruning.schedule.every=1it", "pruning.rewind.to=1it"),
    "iterative": ("pruning.schedule.every=1it", "pruning.sparsity=0.4"),
    "rigl": ("pruning.every=2it",),
    "set": ("pruning.every=2it",),
}
JUNK = (
    "null", "true", "false", "-1", "0", "1", "2", "0.5", "-0.5", "1.5", "3ep", "2it", "0ep", "it",
    "foo", "''", "[]", "{}", "[1,2]", "[0.5,0.2]", "{a:1}", "nan", "inf", "-inf", "???",
    "'${seed}'", "'${nowhere}'", "{_target_:os.getcwd}", "{_target_:no.such}", "é", "1e-30",
)  # fmt: skip
LARGE = ("1e9", "1000000", "90", "1e400", "123456789012345678901234567890")
# where a large number is no mistake but only takes for ever, or all of the memory
SIZES = (
    "width", "batch_size", "repeats", "batch", "num_classes", "in_channels", "epochs", "threads",
    "devices", "depth", "input_shape", "rounds", "val_size", "of", "seed",
)  # fmt: skip
OWN = ("hydra", "about", "paths", "default_root_dir", "max_steps", "strategy", "accelerator")
GROUPS = {
    "pruning": [p.stem for p in sorted((config_dir("conf") / "shared" / "pruning").glob("*.yaml"))],
    "model": ["digits_cnn", "lenet5", "lenet_300_100", "resnet8", "mobilenet_v2"],
    "data": ["digits", "fashion_mnist", "cifar10", "imagenet", "imagenet_shards"],
    "optimizer": ["sgd", "adam", "adamw"],
    "scheduler": ["constant", "cosine", "linear", "multistep"],
    "callbacks": ["default", "budget"],
    "logger": ["csv", "none"],
    "trainer": ["default"],
    "recipe": RECIPES,
}
MORE = (
    "+trainer.gradient_clip_val=0.5", "+trainer.gradient_clip_algorithm=value",
    "+trainer.val_check_interval=2", "+trainer.check_val_every_n_epoch=2",
    "+trainer.overfit_batches=1", "+trainer.max_time=00:00:10:00", "+trainer.profiler=simple",
    "+trainer.nonsense=1", "+pruning.nonsense=1",
    "+callbacks.stop={_target_:regrow.SparseEarlyStopping,monitor:val/loss}",
    "+callbacks.stop={_target_:regrow.SparseEarlyStopping,monitor:nothing}",
    "+callbacks.back={_target_:regrow.Regrow,at:3it,fraction:0.5}",
    "+callbacks.back={_target_:regrow.Regrow,at:3it}",
    "+callbacks.back={_target_:regrow.Rewind,to:1it}",
    "+callbacks.x=1", "+callbacks.x={a:1}", "+callbacks.x={_target_:builtins.dict}", "+extra=1",
    "trainer.precision=bf16-mixed", "trainer.precision=64-true", "trainer.precision=16-mixed",
    "trainer.accelerator=gpu", "trainer.accelerator=cpu", "trainer.strategy=nowhere",
    "trainer.devices=0", "trainer.devices=auto", "trainer.devices=[0]", "trainer.max_epochs=0",
    "dense_epochs=1", "dense_epochs=0", "start=scratch", "start=nowhere.ckpt", "start=null",
    "start=pretrained:nothing", "finetune.lr=0.01", "monitor=val/loss", "monitor_mode=min",
    "pruning.layers={fc:0.5}", "pruning.layers={nowhere:0.5}", "pruning.layers=[fc]",
    "pruning.include=[fc]", "pruning.include=fc", "pruning.exclude=['@first']",
    "pruning.granularity='2:4'", "pruning.granularity=block:2x2", "pruning.criterion=taylor",
    "pruning.criterion=os.getcwd", "pruning.soft=true", "pruning.keep_removed=moments",
    "pruning.distribution=erk", "pruning.distribution=lamp", "pruning.schedule=exponential",
    "pruning.schedule={_target_:regrow.Table,rows:{1it:0.5,3it:0.9}}", "pruning.sparsity=0.999999",
    "pruning.schedule={_target_:regrow.Linear,begin:0,end:4it,every:1it}",
    "pruning.schedule={_target_:regrow.Linear,begin:1,end:2}", "pruning.rewind=1it",
    "pruning._target_=regrow.Rewind", "pruning._target_=nowhere", "model._target_=torch.nn.Linear",
    "optimizer._target_=torch.optim.LBFGS", "optimizer._target_=torch.optim.Rprop",
    "optimizer._partial_=false", "scheduler._partial_=false", "data.augment=flips",
)  # fmt: skip


@cache
def keys(recipe):
    """Every path of a recipe's configuration, inner ones included."""
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir("conf") / "app")):
        cfg = compose("train", [f"recipe={recipe}", *QUICK])
    found = []

    def walk(node, path):
        for key, value in node.items():
            if str(key) not in OWN:
                found.append(f"{path}{key}")
                if isinstance(value, dict):
                    walk(value, f"{path}{key}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    return found


@st.composite
def misspelt(draw, key):
    """A letter less, one twice, or two in each other's place."""
    place = draw(st.integers(0, len(key) - 1))
    kind = draw(st.sampled_from(["less", "more", "swapped"]))
    if kind == "swapped":
        place = min(place, len(key) - 2)
        return key[:place] + key[place + 1] + key[place] + key[place + 2 :]
    return key[:place] + key[place] * (2 if kind == "more" else 0) + key[place + 1 :]


@st.composite
def word(draw, recipe):
    """One override: a value in a setting's place, another option of a group, or a mistake."""
    kind = draw(st.sampled_from(["value"] * 4 + ["more"] * 3 + ["group", "group", "typo", "away"]))
    if kind == "more":
        return draw(st.sampled_from(MORE))
    if kind == "group":
        group = draw(st.sampled_from(sorted(GROUPS)))
        return f"{group}={draw(st.sampled_from([*GROUPS[group], 'nowhere', 'null']))}"
    key = draw(st.sampled_from(keys(recipe)))
    if kind == "away":
        return f"~{key}"
    last = key.rpartition(".")[2]
    wide = not {last, *last.split("_")} & {*SIZES}
    value = draw(st.sampled_from(JUNK + LARGE if wide else JUNK))
    if kind == "typo":
        key = draw(st.sampled_from(["", "+"])) + draw(misspelt(key))
    return f"{key}={value}"


@st.composite
def command_lines(draw):
    recipe = draw(st.sampled_from(RECIPES))
    name = recipe.rpartition("/")[2]
    more = draw(st.lists(word(recipe), min_size=1, max_size=3))
    return [f"recipe={recipe}", *QUICK, *SHORT.get(name, ()), *more]
