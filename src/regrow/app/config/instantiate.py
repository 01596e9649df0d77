# SPDX-License-Identifier: MIT
"""Instantiate config nodes; errors name the node. Public paths of `_target_`s."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

import regrow
from regrow.utils.errors import ConfigError, RegrowError, check_not_text, one_line
from regrow.utils.imports import import_optional

T = TypeVar("T")
_OURS = str(Path(regrow.__file__).parent)
_EXTRAS = {"torchvision": "vision", "timm": "vision"}  # packages of targets in conf/


def public_path(target: str) -> str:
    """Find the public path of a class or function of regrow, given any path of it.

    Paths of other packages, and those that do not exist, are returned unchanged.

    Example:
        >>> public_path("regrow.callbacks.distill.Distill")
        'regrow.Distill'
        >>> public_path("torch.optim.SGD")
        'torch.optim.SGD'
    """
    module, _, name = target.rpartition(".")
    if not module.startswith("regrow."):
        return target
    try:
        found = get_object(target)
    except Exception:  # whatever the import raises
        return target
    parts = module.split(".")
    for count in range(1, len(parts)):
        package = ".".join(parts[:count])
        if getattr(importlib.import_module(package), name, None) is found:
            return f"{package}.{name}"
    return target


def moved(target: str, package: str) -> str:
    """Return the path of a class of Lightning in another distribution of it."""
    for old in ("lightning.pytorch.", "pytorch_lightning.", "lightning."):
        if target.startswith(old):
            return f"{package}.{target.removeprefix(old)}"
    return target


def instantiate_node(what: str, node: Any, kind: type[T] | tuple[type[T], ...], **given: Any) -> T:
    """Instantiate a config node; a target of `lightning`, where only `pytorch_lightning` is, there.

    Errors name the key `what`, such as "callbacks.progress", and have the message of the target.
    """
    target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
    package = target.partition(".")[0]
    if package in _EXTRAS:
        import_optional(f"{what}._target_={target}", _EXTRAS[package], package)
    if package == "lightning" and importlib.util.find_spec(package) is None:
        given["_target_"] = moved(target, "pytorch_lightning")
    try:
        thing = instantiate(node, **given)
    except Exception as error:
        raise _failure(what, node, error) from error
    if not isinstance(thing, kind):
        needed = kind[0] if isinstance(kind, tuple) else kind
        raise ConfigError(
            f"{what}._target_={target} makes a {type(thing).__name__}, {needed.__name__} is "
            f"needed: write one of the options of {what.partition('.')[0]} (regrow train --help)"
        )
    return thing


def instantiate_partial(what: str, node: Any, **given: Any) -> Callable[..., Any]:
    """Instantiate a node with `_partial_: true`; errors of the later call name the node too."""
    call = instantiate_node(what, node, object, **given)
    if not callable(call):
        raise ConfigError(f"{what} is called when the fit starts: write {what}._partial_=true")

    @wraps(call, assigned=(), updated=())
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            raise _failure(what, node, error) from error

    return guarded


def _failure(what: str, node: Any, error: Exception) -> RegrowError:
    """Make the error of a node; of a text where the default of an argument is a number, if any."""
    target = str(node.get("_target_"))
    try:
        made = get_object(target)
    except Exception as reason:  # whatever the import raises
        return ConfigError(f"{what}._target_={target} cannot be imported: {one_line(reason)}")
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):  # it has none that Python knows
        return wrap_error(f"{what} could not be created from its settings", error)
    for name, parameter in parameters.items():
        given, default = node.get(name), parameter.default
        if isinstance(given, str) and type(default) in (int, float):
            check_not_text(f"{what}.{name}", given)
            return ConfigError(
                f"{what}.{name} must be a number, got {given!r}: write {what}.{name}={default}"
            )
    return wrap_error(f"{what} could not be created from its settings", error)


def root_cause(error: BaseException) -> tuple[BaseException, str]:
    """Find the error of regrow among the causes, else the error itself; add the config node."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RegrowError):
        cause = cause.__cause__
    if cause is None:
        return error, str(error)
    _, found, key = str(error).rpartition("full_key: ")
    return cause, f"{cause} (in {key})" if found and key else str(cause)


def wrap_error(what: str, error: Exception) -> RegrowError:
    """Convert an error to one of regrow, with its message; a cause of regrow keeps its class."""
    cause, message = root_cause(error)
    if isinstance(cause, RegrowError):
        return type(cause)(message)
    if isinstance(error, InstantiationException):
        cause = error.__cause__ or error
    return ConfigError(f"{what}: {type(cause).__name__}: {one_line(cause)}")


def is_foreign(error: Exception) -> bool:
    """Whether an error was raised outside of regrow's code."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and not frames[-1].filename.startswith(_OURS)
