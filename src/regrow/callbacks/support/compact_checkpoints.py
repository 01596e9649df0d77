# SPDX-License-Identifier: MIT
"""Write small checkpoints of cut networks beside the full ones of a fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from regrow.callbacks.core.checkpoint_files import save_atomic
from regrow.channels.cut.channel_cut import StoredCut
from regrow.channels.model_config import configured_models, cut_config
from regrow.channels.pruner import ChannelPruner
from regrow.io.checkpoints import KEY, read_checkpoint
from regrow.io.files import write_json
from regrow.utils.errors import RegrowError, StateError
from regrow.utils.lightning_classes import lightning_classes, pl

MASKED = "regrow_masked_channels"  # masked channels by group: checkpoints of weights have no masks
TRAINING_KEYS = ("callbacks", "loops", "lr_schedulers", "optimizer_states", MASKED)


def compact_path(path: str | Path) -> Path:
    """Return where the small checkpoint of a full one is.

    The prefix stops Lightning's `ckpt_path="last"` from matching this file.
    """
    return Path(path).with_name(f"compact-{Path(path).name}")


def load_compact(
    pruner: ChannelPruner,
    module: pl.LightningModule,
    checkpoint: Mapping[str, Any],
    pruner_state: Mapping[str, Any] | None,
) -> None:
    """Load a checkpoint's weights and masks, and cut its masked channels out.

    `pruner_state` is None for a checkpoint of weights.
    """
    if pruner_state is not None:
        pruner.load_state_dict(pruner_state)
    else:
        plan = checkpoint.get(KEY)
        cuts: list[StoredCut] = []
        if plan:
            cuts.append({"plan": plan, "removed_weights": {}, "statistics": {}})
        pruner.reshape(cuts)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    if pruner_state is None and MASKED in checkpoint:
        pruner.masker.mask(dict(checkpoint[MASKED]), [])
    pruner.compact()


def present_weights(module: pl.LightningModule, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a module's tensors that a checkpoint has, to the CPU; other entries are its own."""
    own = module.state_dict()
    return {
        name: own[name].detach().cpu().clone() if isinstance(own.get(name), Tensor) else value
        for name, value in saved.items()
    }


def write_compact_checkpoints(
    trainer: pl.Trainer,
    pruner: ChannelPruner,
    module: pl.LightningModule,
    state_key: str,
    finish: Callable[[], None],
) -> None:
    """Write a small checkpoint beside the best and the last one of each `ModelCheckpoint`.

    It holds weights, the record of the cut and hyper-parameters, and what the module saves itself,
    but no state of training. The configuration of a model of transformers is written along, as
    JSON, where its fields can say the widths. The module and its pruner are as before afterwards.
    A checkpoint that cannot be read or cut is warned of. Call it on every rank; `finish` is called
    after each cut, to estimate batch-norm statistics again.
    """
    paths = _saved_paths(trainer)
    before = pruner.state_dict(), present_weights(module, module.state_dict())
    written = []
    try:
        for path in paths:
            try:
                content = trainer.strategy.broadcast(_read(trainer, path, state_key))
                if isinstance(content, str):
                    raise StateError(content)
                load_compact(pruner, module, content, content.pop("pruner", None))
                finish()
                weights = present_weights(module, content["state_dict"])
                content |= {"state_dict": weights, KEY: pruner.plan.state_dict()}
                content.pop(MASKED, None)
                save = partial(trainer.strategy.save_checkpoint, content)
                save_atomic(trainer, str(compact_path(path)), save)
            except RegrowError as error:
                rank_zero_warn(f"no small checkpoint beside {path}: {error}")
            else:
                written += [str(compact_path(path)), *_write_configs(trainer, path, module, pruner)]
    finally:
        if paths:
            pruner.load_state_dict(before[0])
            module.load_state_dict(before[1])
    if written:
        rank_zero_info(
            f"ChannelPruning wrote the cut network to {' and '.join(written)}: "
            "regrow.load(MyModule, path) loads it"
        )


def _write_configs(
    trainer: pl.Trainer, path: str, module: pl.LightningModule, pruner: ChannelPruner
) -> list[str]:
    """Write the configurations that build the cut models in a module; return the paths."""
    written: list[str] = []
    for name, model in configured_models(module).items():
        config = cut_config(model, pruner.plan, name)
        if config is not None and trainer.is_global_zero and "://" not in path:
            file = compact_path(path).with_suffix(f".{name}.json" if name else ".json")
            write_json(file, config.to_dict())
            written.append(str(file))
    return written


def _saved_paths(trainer: pl.Trainer) -> list[str]:
    """The best and the last checkpoint of each `ModelCheckpoint`, as far as they exist."""
    kinds = lightning_classes("callbacks.ModelCheckpoint")
    saves: Iterable[Any] = [c for c in trainer.checkpoint_callbacks if isinstance(c, kinds)]
    paths = [p for save in saves for p in (save.best_model_path, save.last_model_path)]
    return [path for path in dict.fromkeys(map(str, paths)) if path]


def _read(trainer: pl.Trainer, path: str, state_key: str) -> dict[str, Any] | str:
    """Read what the small checkpoint needs on the first rank; the reason as text on failure."""
    if not trainer.is_global_zero:
        return ""
    try:
        content = read_checkpoint(path)
    except (OSError, StateError) as error:
        return str(error)
    state = (content.get("callbacks") or {}).get(state_key) or {}
    plugins = (trainer.precision_plugin, trainer.datamodule)  # type: ignore[attr-defined]
    training = {*TRAINING_KEYS, *(type(plugin).__qualname__ for plugin in plugins)}
    masked = {MASKED: content[MASKED]} if MASKED in content else {}
    kept = {key: value for key, value in content.items() if key not in training}
    return {**kept, **masked, **({"pruner": state["pruner"]} if state.get("pruner") else {})}
