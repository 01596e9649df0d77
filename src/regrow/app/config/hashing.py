# SPDX-License-Identifier: MIT
"""Hash of the settings a result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from regrow.app.config.initial_weights import PRETRAINED, SCRATCH, checkpoint_of
from regrow.app.config.instantiate import public_path
from regrow.app.config.schema import GROUPS

# Settings that do not change a result: paths and what is displayed.
_UNIMPORTANT = {
    "trainer": {
        *("default_root_dir", "enable_progress_bar", "enable_model_summary"),
        *("log_every_n_steps", "profiler"),
    },
    "data": {"root", "download", "train", "test"},
    "callbacks": {"progress", "sparsity_monitor"},
}
CLASSIFICATION = {"_target_": "regrow.app.training.Classifier"}
_HASHED = (
    *(group for group in GROUPS if group != "logger"),
    *("seed", "start", "dense_epochs", "finetune", "label_smoothing", "monitor", "monitor_mode"),
)


def unimportant(group: str, node: Mapping[Any, Any]) -> set[str]:
    """Return the settings of a group that do not change a result; none of the user's own data."""
    if group == "data" and not str(node.get("_target_")).startswith("regrow.app.data."):
        return set()
    return _UNIMPORTANT.get(group, set())


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that a result depends on, as plain containers."""
    values: dict[str, Any] = {}
    for part in _HASHED:
        node = cfg.get(part)  # older runs have no task
        if isinstance(node, DictConfig):
            node = node.copy()
            OmegaConf.set_struct(node, False)
            node._set_parent(cfg)  # interpolations such as ${seed} look upwards
            for key in unimportant(part, node):
                node.pop(key, None)
            node = OmegaConf.to_container(node, resolve=True)
        values[part] = _with_public_paths(node)
    values["start"] = _hash_start(cfg.start)
    if values["task"] in (None, CLASSIFICATION):
        del values["task"]  # hashes are older than tasks
    if code := _hash_code(values):
        values["code"] = code
    return values


def config_hash(cfg: DictConfig) -> str:
    """Compute a short hash of `settings`: runs with equal hashes have equal results."""
    text = json.dumps(settings(cfg), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hash_code(node: Any) -> dict[str, str]:
    """Hash the files of the current folder that `_target_`s name, by their paths."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return {}
    found: dict[str, str] = {}
    for value in node.values():
        found |= _hash_code(value)
    names = str(node.get("_target_", "")).split(".")[:-1]
    for count in range(len(names), 0, -1):  # a method's class is no file, its module is
        path = "/".join(names[:count])
        for file in (Path(f"{path}.py"), Path(f"{path}/__init__.py")):
            if file.is_file():
                found[file.as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return found


def _with_public_paths(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: public_path(value)
            if key == "_target_" and isinstance(value, str)
            else _with_public_paths(value)
            for key, value in node.items()
        }
    return [_with_public_paths(value) for value in node] if isinstance(node, list) else node


def _hash_start(start: str | None) -> str | None:
    """Replace the path of a checkpoint by a hash of its content."""
    if start is None or start == SCRATCH or start.startswith(PRETRAINED):
        return start
    content = checkpoint_of(Path(start)).read_bytes()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
