# SPDX-License-Identifier: MIT
"""Answer arguments of other pruning tools with the line to write instead."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from regrow.utils.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

# What other tools call the sparsity: Lightning's ModelPruning, NNI and TF-MOT, Torch-Pruning.
_SPARSITY = ("amount", "final_sparsity", "target_sparsity", "pruning_ratio", "ch_sparsity")
# The other arguments of Lightning's ModelPruning.
_MODEL_PRUNING = (
    "pruning_fn",
    "parameters_to_prune",
    "parameter_names",
    "use_global_unstructured",
    "apply_pruning",
    "make_pruning_permanent",
    "use_lottery_ticket_hypothesis",
    "resample_parameters",
    "pruning_dim",
    "pruning_norm",
    "verbose",
    "prune_on_train_epoch_end",
)
_CRITERIA = {  # of torch.nn.utils.prune, and our criteria
    "l1_unstructured": "magnitude",
    "L1Unstructured": "magnitude",
    "random_unstructured": "random",
    "RandomUnstructured": "random",
    "ln_structured": "l2",
    "LnStructured": "l2",
    "random_structured": "random",
    "RandomStructured": "random",
}


def answer_other_arguments(call: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function or an `__init__` to answer other tools' arguments with the line to write.

    The signature stays: command lines and configs are made from it.
    """
    names = list(inspect.signature(call).parameters)
    other = {*_SPARSITY, *_MODEL_PRUNING} - {*names}

    @functools.wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("sparsity") in list(_CRITERIA):  # the first argument of ModelPruning
            given["pruning_fn"] = given.pop("sparsity")
        if not other.isdisjoint(given):
            raise ConfigError(_message(call.__qualname__.partition(".")[0], names, given))
        return call(*args, **kwargs)

    return checked


def _message(name: str, names: Sequence[str], given: Mapping[str, Any]) -> str:
    """The message for arguments of other tools."""
    other = [each for each in given if each not in names]
    fn, amount = given.get("pruning_fn"), next((given[k] for k in _SPARSITY if k in given), None)
    fn = fn if fn is None or isinstance(fn, str) else getattr(fn, "__name__", None)
    share = amount if isinstance(amount, float) and 0 <= amount < 1 else 0.9
    settings = {k: repr(v) for k, v in given.items() if k in names[1:] and k != "sparsity"}
    if fn is not None and "tructured" in fn and "nstructured" not in fn:
        name, names = "ChannelPruning", ["self", "sparsity", "criterion", "rewind", *settings]
        l1 = _CRITERIA.get(fn) == "l2" and given.get("pruning_norm") == 1
        settings["criterion"] = repr("l1" if l1 else _CRITERIA.get(fn, "l2"))
    elif fn is not None:
        settings["criterion"] = repr(_CRITERIA.get(fn, "magnitude"))
    if (whole := given.get("use_global_unstructured")) is not None:
        settings["distribution"] = repr("global" if whole else "uniform")
    if given.get("parameters_to_prune"):
        settings["include"] = "['LAYER.weight']"
    if given.get("use_lottery_ticket_hypothesis"):
        settings["rewind"] = "0"
    first = ["model"] if names[0] == "model" else []
    first.append(f"{share:g}" if names[1] == "sparsity" else f"sparsity={share:g}")
    line = ", ".join([*first, *(f"{k}={v}" for k, v in settings.items() if k in names)])
    message = f"{', '.join(other)}: arguments of another pruning tool; write {name}({line})"
    if "amount" in given:
        message += (
            " (Lightning's ModelPruning removes amount of what remains at each epoch's end; here "
            "sparsity is the pruned share of all weights when the fit ends. Three such rounds: "
            f"MagnitudePruning(schedule=Exponential({share:g}, every='1ep', rounds=3)))"
        )
    return message
