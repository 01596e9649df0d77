# SPDX-License-Identifier: MIT
"""Configurations with missing or wrong values raise an error that names the key."""

import copy
import re

import pytest
import torch
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf
from torch import nn

from regrow.app.cli.main import main
from regrow.app.config.command_line import prepare
from regrow.app.config.instantiate import instantiate_node, instantiate_partial, wrap_error
from regrow.app.config.schema import check_schema
from regrow.app.experiment.run import train
from regrow.app.launch.search import check_objectives
from regrow.app.training.build import build_pruning
from regrow.app.training.preflight import set_up
from regrow.utils.errors import ConfigError, StateError

GMP = ("recipe=digits/gmp", "pruning.every=0.1")


GONE = object()
TYPES = [
    ("finetune=90", "int is not a subclass of Finetune. value: 90"),
    ("latency=foo", "str is not a subclass of Latency. value: foo"),
    ("latency.repeats=[1,2]", "of type 'list' could not be converted to Integer"),
    ("~latency.batch", "does not support deletion"),
    ("seed=foo", "'foo' of type 'str' could not be converted to Integer"),
    ("dense_epochs=0.5", "'0.5' of type 'float' could not be converted to Integer"),
    ("force=3ep", "'3ep' is not a valid bool"),
    ("label_smoothing=[0.5]", r"type 'list' is incompatible with type hint 'Union\[int, float\]'"),
    ("label_smoothing=true", "type 'bool' is incompatible"),
    ("finetune.lr=foo", "type 'str' is incompatible"),
    ("start=[a]", "is not convertible|Cannot convert|unsupported|string"),
    ("finetune.lrr=1", "Key 'lrr' not in 'Finetune'"),
    ("laten.batch=1", "Key 'laten' not in 'Settings'"),
]
KINDS = [
    ("seed", -1, "seed must be a whole number of at least 0, got -1"),
    ("dense_epochs", -1, "dense_epochs must be a whole number of at least 0, got -1"),
    *(
        ("threads", given, "threads must be .*write threads=1, or threads=auto")
        for given in (0, -1, "all")
    ),
    ("finetune.lr", -1, r"finetune\.lr must be a number above 0"),
    ("finetune.batch_size", 0, r"finetune\.batch_size must be a whole number of at least 1"),
    ("latency.batch", 0, r"latency\.batch must be a whole number of at least 1, got 0"),
    ("latency", GONE, "latency was removed, but every run needs it: leave out ~latency"),
    ("trainer.accumulate_grad_batches", float("inf"), "must be a whole number of at least 1"),
    ("trainer.max_epochs", "2ep", r"trainer\.max_epochs must be a whole number"),
    ("optimizer.nesterov", "???", r"optimizer\.nesterov must be given"),
    ("optimizer.lr", "${nowhere}", "a setting cannot be read: .*nowhere"),
    ("model", GONE, "model was removed, but every run needs it: leave out ~model"),
    ("optimizer._target_", GONE, "optimizer has no _target_"),
    ("callbacks.x", 1, r"callbacks\.x must be a mapping with a _target_, got 1"),
    ("callbacks.x", {"a": 1}, r"callbacks\.x must be a mapping with a _target_"),
]
REFUSED = [
    ("label_smoothing", 1, r"label_smoothing must be in \[0, 1\), got 1.0: write 0.1"),
    ("optimizer.lr", "foo", "optimizer.lr must be a number, got 'foo': write optimizer.lr=0.001"),
    (
        "optimizer.lr",
        -1,
        "optimizer could not be created from its settings: ValueError: Inv",
    ),
    ("optimizer._target_", "torch.optim.LBFGS", "LBFGS.*unexpected keyword argument"),
    ("optimizer.weight_decay", 10**40, "the optimizer cannot step with its settings: Overflow"),
    ("optimizer._partial_", False, "optimizer could not be created from its settings"),
    ("scheduler._partial_", False, "scheduler could not be created from its settings"),
    ("scheduler._partial_", "3ep", "scheduler could not be created from its settings: .*bool"),
    ("model.width", -1, r"width must be a whole number of at least 1, got -1 \(in model\)"),
    (
        "model._target_",
        "torch.nn.Linear",
        "model could not be created from its settings: Type",
    ),
    ("pruning._target_", "nowhere", "pruning could not be created from its settings: .*nowhere"),
    ("callbacks.x", {"_target_": "builtins.dict"}, "makes a dict, Callback is needed"),
    ("trainer.accumulate_grad_batches", "2it", "must be a whole number of at least 1"),
    ("trainer.limit_train_batches", -3, "trainer could not be created from its settings: Misconf"),
    ("trainer.precision", "nothing", "trainer could not be created from its settings: .*nothing"),
    ("trainer.devices", 0, r"trainer\.devices=0 is not available: Misconfiguration"),
    ("logger.name", True, "logger cannot be used with its settings: TypeError"),
    (
        "callbacks.stop",
        {"_target_": "regrow.SparseEarlyStopping", "monitor": "val/accuraci"},
        "SparseEarlyStopping monitors 'val/accuraci', which is never logged: did you mean 'val",
    ),
]


def changed(cfg, path, value):
    """The same configuration with one setting changed, or taken away."""
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    parent, _, key = path.rpartition(".")
    if value is GONE:
        del (OmegaConf.select(cfg, parent) if parent else cfg)[key]
    else:
        OmegaConf.update(cfg, path, value, merge=False)
    return cfg


@pytest.mark.parametrize(("word", "message"), TYPES)
def test_values_of_other_types_raise_at_composition(job, word, message):
    with pytest.raises(HydraException) as refused:
        job(*GMP, word)
    said = f"{refused.value} {refused.value.__cause__}"  # Hydra prints both
    assert re.search(message, said)
    assert word.strip("~").partition("=")[0] in said


def test_values_of_another_kind_raise_with_their_key(job):
    cfg = job(*GMP)
    check_schema(cfg)
    for path, value, message in KINDS:
        with pytest.raises(ConfigError, match=message):
            check_schema(changed(cfg, path, value))


def test_objectives_that_are_no_names_raise():
    with pytest.raises(ConfigError, match="objectives must be names, each once, got -1"):
        check_objectives(-1)


def test_optional_nodes_may_be_empty(job):
    for word in ("logger=none", "pruning=none", "callbacks.random_state=null", "dense_epochs=0"):
        words = GMP[:1] if word.startswith("pruning") else GMP
        cfg = job(*words, word)
        found = OmegaConf.select(cfg, word.partition("=")[0])
        assert not found or "_target_" not in found, "it is empty"
        check_schema(cfg)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("logger=null", r"logger takes the name of an option \(none for nothing\), .*csv"),
        ("pruning=0.9", r"pruning takes the name of an option \(none for nothing\), .*gmp"),
        ("model=true", "there are: .*digits_cnn"),
        ("optimizer=nan", "there are: adam, adamw, sgd"),
        ("sweep=null", "leave it out"),
        ("pruning=gmp,null", r"pruning takes the name of an option \(none for nothing\), .*gmp"),
        ("model=choice(lenet5,3)", "there are: .*digits_cnn"),
        ("recipe=null", "such as recipe=digits/gmp"),
        ("pruning=range(1,3)", "there are: .*gmp"),
        ("model=interval(0,1)", "there are: .*lenet5"),
    ],
)
def test_group_given_a_value_raises_with_its_options(word, message):
    with pytest.raises(ConfigError, match=message):
        prepare("train", [word])


def test_group_names_and_sweep_syntax_are_accepted():
    words = ["model=lenet5", "sweep=[optuna,seeds]", "pruning=choice(gmp,erk)", "seed=1"]
    prepare("train", [*words, "recipe=digits/gmp,digits/imp", "+model.x=null", "~logger", "-m"])
    for word in ("model=", "logger=[csv"):
        with pytest.raises(ConfigError) as refused:
            prepare("train", [word])
        assert "takes the name of an option" not in str(refused.value)


def test_errors_of_other_libraries_are_raised_before_training(job):
    cfg = job(*GMP, "trainer.accelerator=cpu")
    for path, value, message in REFUSED:
        with pytest.raises(ConfigError, match=message):
            train(changed(cfg, path, value))


def test_dense_run_is_checked_before_training(job, tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer\.lr must be a number"):
        train(job("recipe=digits/dense", "optimizer.lr=foo"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_own_errors_keep_their_type():
    def ours():
        raise StateError("mine")

    try:
        ours()
    except StateError as error:
        wrapped = InstantiationException("Error in call\nfull_key: model.head")
        wrapped.__cause__ = error
    found = wrap_error("model cannot be made", wrapped)
    assert (type(found), str(found)) == (StateError, "mine (in model.head)")


def test_bug_in_the_setup_is_no_config_error(job, monkeypatch):
    monkeypatch.setattr(
        "regrow.callbacks.core.pruning_callback.print_summary", None
    )  # called: a TypeError there
    cfg = job(*GMP)
    with pytest.raises(TypeError, match="not callable"):
        set_up(cfg, build_pruning(cfg))


def test_instantiated_objects_have_the_required_type():
    node = OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1})
    assert isinstance(instantiate_node("model", node, nn.Module), nn.Linear)
    with pytest.raises(ConfigError, match=r"write optimizer\._partial_=true"):
        instantiate_partial("optimizer", {"a": 1})
    late = instantiate_partial(
        "optimizer", OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": True})
    )
    assert isinstance(late([torch.zeros(1, requires_grad=True)]), torch.optim.SGD)


def test_latency_is_measured_in_other_precisions(job):
    result = train(job(*GMP, "trainer.precision=64-true", "trainer.max_epochs=1"))
    assert result["pruned"]["latency_ms"]["median"] > 0


@pytest.mark.parametrize("word", ["~seed", "seed='${nowhere}'", "seed=???"])
def test_invalid_run_folder_gives_a_one_line_error(word, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "recipe=digits/gmp", word]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: a setting cannot be read: ")
