# SPDX-License-Identifier: MIT
"""Exceptions and argument checks.

A message says what was given, what is allowed and what to write instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Literal, TypeVar

F = TypeVar("F")

# Names that other pruning tools use, and what they are called here: the first that is allowed is
# suggested.
_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "polynomial cubic_sparsity polynomial_decay polynomialdecay poly gradual agp": ("cubic",),
    "constant oneshot one_shot single": ("one_shot",),
    "iterative geometric lottery_ticket imp": ("exponential",),
    "l1 l2 abs weight weights norm l1_unstructured": ("magnitude",),
    "l1_norm l1_structured": ("l1", "magnitude"),
    "magnitude l2_norm ln_structured": ("l2",),
    "random_unstructured random_structured rand set": ("random",),
    "grad gradients rigl": ("gradient",),
    "saliency first_order": ("taylor",),
    "obd hessian obdc grouphessian optimal_brain_damage": ("fisher",),
    "mean_activation": ("activation",),
    "average_percentage_of_zeros": ("apoz",),
    "snfs": ("momentum",),
    "layerwise layer local": ("uniform",),
    "global_unstructured": ("global",),
    "er erdos_renyi erdosrenyi": ("erk",),
    "flops mac": ("macs",),
    "parameters weights": ("params",),
    "filters filter neurons": ("channels",),
    "unstructured element l1_unstructured weights": ("weight",),
}
_CHANNELS = (
    "structured channel channels filter filters ln_structured l1_structured random_structured"
)


class RegrowError(Exception):
    """Base class of all errors that regrow raises."""


class ConfigError(RegrowError, ValueError):
    """A setting that is invalid as written."""

    __module__ = "regrow"  # its public path, as tracebacks show it


class StateError(RegrowError, RuntimeError):
    """A call, checkpoint or model that does not match earlier state."""

    __module__ = "regrow"


class BusyError(StateError):
    """A file or folder that another process is using."""


class DataError(RegrowError, OSError):
    """Data that is missing or malformed."""


def disk_error(error: BaseException | None) -> OSError | None:
    """Find the OSError that a library has wrapped in an error of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def write_error(path: object, error: BaseException) -> StateError:
    """Make the error for a file that cannot be written: full disk, read-only folder."""
    return StateError(
        f"{path} could not be written ({error}): an earlier file is unchanged; free disk space or "
        "choose another folder, and run again"
    )


def closest_names(given: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return the names most similar to `given`, best first."""
    return difflib.get_close_matches(given, list(names), n=count, cutoff=0.5)


def suggest(given: str, names: Collection[str]) -> str:
    """End a message about an unknown name: list the nearest names, else all."""
    close = closest_names(given, names)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "there are: " + ", ".join(sorted(names)[:20])


def one_line(text: object) -> str:
    """Return a message, such as one of another library, without its line breaks."""
    return " ".join(str(text).split())


def check_choice(what: str, given: object, allowed: Collection[str]) -> str:
    """Return `given` if it is one of `allowed`."""
    if isinstance(given, str) and given in allowed:
        return given
    raise ConfigError(
        f"{what} must be one of {', '.join(sorted(allowed))}, got {given!r}: "
        f"{name_elsewhere(given, allowed) or suggest(str(given), allowed)}"
    )


def name_elsewhere(given: object, allowed: Collection[str]) -> str:
    """End a message about a name that other pruning tools use; '' for other names."""
    name = str(given).lower().replace("-", "_").replace(" ", "_")
    for theirs, ours in _ELSEWHERE.items():
        if name in theirs.split() and (known := [one for one in ours if one in allowed]):
            return f"write {known[0]!r}"
    if name in _CHANNELS.split():
        return "whole channels are pruned by ChannelPruning(0.5), or regrow.channels.prune"
    return ""


def check_callable(what: str, given: str | F, named: Mapping[str, F]) -> F:
    """Return the function of a name, or a given callable unchanged."""
    if isinstance(given, str):
        return named[check_choice(what, given, named)]
    if not callable(given):
        raise ConfigError(f"{what} must be a name or a callable, got {given!r}")
    return given


def join_limited(items: Iterable[str], limit: int = 3, separator: str = ", ") -> str:
    """Join at most `limit` items, and say how many more there are."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


def check_not_text(what: str, given: object) -> None:
    """Check that a number is not given as text, such as the value of an environment variable."""
    if not isinstance(given, str):
        return
    try:
        float(given)
    except ValueError:
        return
    raise ConfigError(
        f"{what} is the text {given!r}, not a number: write {given.strip()}, in YAML without "
        "quotes, or ${oc.decode:${oc.env:NAME}} for a variable of the environment"
    )


def check_sparsity(what: str, given: object, *, zero: bool = True) -> float:
    """Return `given` as a float in [0, 1): the fraction of weights to prune."""
    check_not_text(what, given)
    if isinstance(given, bool) or not isinstance(given, Real):
        raise ConfigError(f"{what} must be a number in [0, 1), got {given!r}: write 0.9 for 90 %")
    value = float(given)
    if not 0 <= value < 1:
        hint = f"write {value / 100:g} for {value:g} %" if 1 < value < 100 else "write 0.9 for 90 %"
        raise ConfigError(f"{what} must be in [0, 1), got {given}: {hint}")
    if value == 0 and not zero:
        raise ConfigError(f"{what} must be above 0, got {given}: write 0.9 for 90 %")
    return value


def check_layer_sparsities(given: object) -> dict[str, float]:
    """Return separate sparsities of layers, `{pattern: sparsity}`; empty for None."""
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"layers must map patterns to sparsities, {{'fc': 0.5}}, got {given!r}")
    return {
        pattern: check_sparsity(f"the sparsity of layers {pattern!r}", sparsity)
        for pattern, sparsity in (given or {}).items()
    }


def check_rate(what: str, given: object) -> float:
    """Return `given` as a float in (0, 1): the fraction of the remaining weights."""
    value = check_sparsity(what, given)
    if value == 0:
        raise ConfigError(f"{what} must be in (0, 1), got {given}: write 0.2 for 20 %")
    return value


def check_positive(what: str, given: object, example: str) -> float:
    """Return `given` as a float above 0."""
    check_not_text(what, given)
    if isinstance(given, bool) or not isinstance(given, Real) or not float(given) > 0:
        raise ConfigError(f"{what} must be a number above 0, got {given!r}: write {example}")
    return float(given)


def check_damping(given: object) -> float:
    """Return a ridge term, a fraction of at least 0, as a float."""
    if given == 0 and not isinstance(given, bool):
        return 0.0
    return check_positive("damping", given, "1e-3")


def check_count(what: str, given: object, *, least: int = 1) -> int:
    """Return `given` as an int of at least `least`."""
    check_not_text(what, given)
    if isinstance(given, bool) or not isinstance(given, Integral) or int(given) < least:
        raise ConfigError(f"{what} must be a whole number of at least {least}, got {given!r}")
    return int(given)


def check_bool(what: str, given: object) -> bool:
    """Return `given` if it is True or False."""
    if isinstance(given, bool):
        return given
    raise ConfigError(f"{what} must be True or False, got {given!r}")


def check_keep_removed(given: object) -> bool | Literal["moments"]:
    """Return `given` if it says which removed values are kept: True, False or "moments"."""
    if given in (True, False):
        return bool(given)
    if given == "moments":
        return "moments"
    raise ConfigError(f"keep_removed must be True (values), 'moments' or False, got {given!r}")


def check_patterns(what: str, given: object) -> tuple[str, ...] | None:
    """Return layer patterns as a tuple; one string counts as one pattern."""
    if given is None:
        return None
    if isinstance(given, str):
        return (given,)
    patterns = tuple(given) if isinstance(given, Iterable) else (given,)
    if not patterns and what == "exclude":
        return None  # nothing is excluded
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        more = ", or None for all" if what == "include" else ""
        raise ConfigError(
            f'{what} must be layer patterns such as ["layer4.*", "fc"]{more}, got {given!r}'
        )
    return patterns
