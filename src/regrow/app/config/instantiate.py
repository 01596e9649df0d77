# SPDX-License-Identifier: MIT
"""Config node -> object, with the node's name in errors."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

import regrow
from regrow.utils.errors import ConfigError, RegrowError

_OURS = str(Path(regrow.__file__).parent)


def instantiate_node(what: str, node: Any, kind: type | None = None, **given: Any) -> Any:
    """Instantiates a node.

    Args:
        what: Where it stands in the configuration: "model", "callbacks.progress".
        node: A mapping with `_target_`.
        kind: What must come out of it; None: anything.
        given: Arguments beside the node's own.

    Raises:
        ConfigError: Naming the setting and what its target says to it.
    """
    try:
        thing = instantiate(node, **given)
    except Exception as error:
        raise wrap_error(f"{what} cannot be made of its settings", error) from error
    if kind is not None and not isinstance(thing, kind):
        target = node.get("_target_") if isinstance(node, Mapping) else None
        raise ConfigError(
            f"{what}._target_={target} makes a {type(thing).__name__}, {kind.__name__} is needed: "
            f"write one of the options of {what.partition('.')[0]} (regrow train --help)"
        )
    return thing


def instantiate_partial(what: str, node: Any, **given: Any) -> Callable[..., Any]:
    """Instantiates a node with `_partial_: true`, whose call is guarded in the same way.

    Raises:
        ConfigError: If it is none.
    """
    call = instantiate_node(what, node, **given)
    if not callable(call):
        raise ConfigError(f"{what} is called when the fit starts: write {what}._partial_=true")

    @wraps(call, assigned=(), updated=())
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            raise wrap_error(f"{what} cannot be made of its settings", error) from error

    return guarded


def wrap_error(what: str, error: Exception) -> RegrowError:
    """An error of ours that passes on what somebody else's says; ours as it is."""
    ours = _found(error)
    if ours is not None:
        where = f" (in {key})" if (key := _key(error)) else ""
        return type(ours)(f"{ours}{where}")
    inner = error.__cause__ if isinstance(error, InstantiationException) else None
    cause = inner or error
    said = " ".join(str(cause).split())
    return ConfigError(f"{what}: {type(cause).__name__}: {said}")


def is_foreign(error: Exception) -> bool:
    """Whether an error was raised in somebody else's code, not in ours."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and not frames[-1].filename.startswith(_OURS)


def _found(error: BaseException | None) -> RegrowError | None:
    while error is not None and not isinstance(error, RegrowError):
        error = error.__cause__
    return error


def _key(error: Exception) -> str:
    return str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else ""
