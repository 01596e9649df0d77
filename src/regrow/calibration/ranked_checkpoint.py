# SPDX-License-Identifier: MIT
"""A checkpoint of the dense weights and of the order in which they are pruned."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrow.calibration.calibrate import (
    calibrated_layers,
    inputs_of,
    layer_sparsities,
    layers_of,
    refit_layers,
    score_layers,
)
from regrow.calibration.moments import Data, order_layers
from regrow.calibration.scores import CRITERIA
from regrow.criteria.base import Criterion, TrackingCriterion, compute_scores, get_criterion
from regrow.criteria.precomputed import Scores
from regrow.io.checkpoints import read_checkpoint
from regrow.io.files import write_atomic
from regrow.masks.distributions import lamp_scores
from regrow.masks.masks import Masks
from regrow.masks.targets import Target, select_targets, selection_by_name
from regrow.pruning.compute_masks import choose_masks
from regrow.pruning.config import PruningConfig
from regrow.utils.batches import Batches
from regrow.utils.bits import pack_bits, unpack_bits
from regrow.utils.errors import ConfigError, StateError, check_damping, check_sparsity
from regrow.utils.logging import warn
from regrow.utils.names import accept_compile_prefix, strip_compile_prefix

KEY = "regrow_ranks"  # key of the ranks in a checkpoint


@torch.no_grad()
def save_ranked(
    model: nn.Module,
    path: str | Path,
    *,
    criterion: str | Criterion | TrackingCriterion = "magnitude",
    distribution: str = "global",
    data: Batches | None = None,
    samples: int = 1024,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    min_density: float = 0.0,
    seed: int = 0,
) -> None:
    """Save the dense weights once with the rank of each, for `load_ranked` at any sparsity.

    A rank takes as many bits as the number of weights has: 19 for 266,000. The file is also a
    checkpoint of the dense network, with its `state_dict`.

    Args:
        model: The dense model; it is unchanged.
        path: The file.
        criterion: As for `regrow.prune`; or "obs", "wanda" or "ria", with `data`.
        distribution: "global", "uniform", "erk" or "lamp".
        data: Batches, as for `regrow.calibrate`.
        samples: Number of examples to use, rounded up to whole batches.
        include: Patterns of parameters to prune; None: as for `regrow.prune`.
        exclude: Patterns of parameters not to prune.
        min_density: Fraction of its weights that each layer keeps at least.
        seed: For random criteria.

    Raises:
        ConfigError, StateError: For invalid settings.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "ranked.ckpt")
        >>> save_ranked(nn.Linear(10, 10), path)
        >>> load_ranked(path, nn.Linear(10, 10), 0.83).sparsity
        0.83
    """
    if isinstance(criterion, str) and criterion in CRITERIA:
        criterion = _calibrated_scores(model, criterion, data, samples, include, exclude)
    PruningConfig(criterion, distribution, include=include, exclude=exclude).validated()
    targets, rule = select_targets(model, include, exclude).targets, get_criterion(criterion)
    scores = []
    for target in targets:
        weight, grad = target.parameter.detach(), target.parameter.grad
        values = compute_scores(rule, target.name, weight, grad, (seed, 0))
        scores.append(lamp_scores(values, None, target.name) if distribution == "lamp" else values)
    planes = _rank_planes({target.name: one for target, one in zip(targets, scores, strict=True)})
    ranks = {
        "planes": planes,
        "shapes": {target.name: list(target.parameter.shape) for target in targets},
        "distribution": "global" if distribution == "lamp" else distribution,
        "min_density": float(min_density),
    }
    content = {"state_dict": model.state_dict(), KEY: ranks}
    write_atomic(Path(path), lambda file: torch.save(content, file))


def load_ranked(
    path: str | Path,
    model: nn.Module,
    sparsity: float,
    *,
    data: Batches | None = None,
    samples: int = 1024,
    damping: float = 1e-3,
) -> Masks:
    """Load the network of `save_ranked` at a sparsity, exactly as if it had been pruned there.

    Args:
        path: The file.
        model: A model of the same shapes, compiled or not; its weights are replaced.
        sparsity: Fraction of the ranked weights to prune, in [0, 1).
        data: Batches of inputs with which kept weights are refitted, as by `regrow.calibrate`;
            None: they are the dense ones.
        samples: Number of examples to use, rounded up to whole batches.
        damping: Ridge term of the refit, as a fraction of the mean squared input.

    Returns:
        The masks; pass them to `regrow.enforce` to train further.

    Raises:
        ConfigError: For a sparsity out of range, and data that do not fit.
        StateError: If the file holds no ranks, or is of another model. After an error the model is
            as it was given.

    Example: see `save_ranked`.
    """
    damping = check_damping(damping)
    sparsity, content = check_sparsity("sparsity", sparsity), read_checkpoint(path)
    if KEY not in content:
        raise StateError(f"{path} holds no ranks: write it by regrow.save_ranked(model, path)")
    state, saved = content["state_dict"], content[KEY]
    own, given = _shapes(model.state_dict()), _shapes(state)
    if wrong := [name for name in {**own, **given} if own.get(name, 0) != given.get(name, 0)]:
        raise StateError(f"{path} is of another model: {', '.join(wrong[:5])} differ")
    targets = selection_by_name(model, saved["shapes"]).targets
    if tied := [*{*saved["shapes"]} - {target.name for target in targets}]:
        raise StateError(
            f"{path} is of another model: {', '.join(tied[:5])} is the weight of another layer too"
        )
    before = copy.deepcopy(model.state_dict())
    try:
        with accept_compile_prefix(model):
            model.load_state_dict(state)
        dense = None if data is None else copy.deepcopy(model)
        masks = _prune(targets, saved, sparsity)
        if data is not None and dense is not None:
            used = Data(inputs_of(model, data, samples))
            layers = layers_of(model, targets)
            layers = order_layers(model, layers, used.batches[:1], all_run=True)
            refit_layers(model, dense, layers, masks, used, damping)
    except BaseException:
        model.load_state_dict(before)
        raise
    return masks


def _shapes(state: Mapping[str, Any]) -> dict[str, torch.Size | None]:
    """Return the shape of each entry of a `state_dict`; None for what a module adds by itself."""
    return {
        strip_compile_prefix(name): None if name.endswith("_extra_state") else value.shape
        for name, value in state.items()
    }


def _prune(targets: Sequence[Target], saved: Mapping[str, Any], sparsity: float) -> Masks:
    """Prune by saved ranks; by exact names, which patterns of `regrow.prune` are not."""
    scores = Scores({target.name: _rank(saved, target.name) for target in targets})
    config = PruningConfig(scores, saved["distribution"], min_density=saved["min_density"])
    chosen = choose_masks(config.validated(), targets, [None] * len(targets), sparsity, {}, 0)
    masks = Masks({target.name: mask for target, mask in zip(targets, chosen, strict=True)})
    for target in targets:
        target.weight.masked_fill_(~masks[target.name], 0.0)
    thin = [name for name in masks if masks.density(name) < 0.01]
    if thin and saved["distribution"] != "uniform":
        warn(
            f"under 1 % of the weights are kept in {', '.join(thin)}: to keep more in every layer, "
            "write save_ranked(..., min_density=0.01), or distribution='erk'"
        )
    return masks


def _calibrated_scores(
    model: nn.Module,
    criterion: str,
    data: Batches | None,
    samples: int,
    include: Iterable[str] | None,
    exclude: Iterable[str] | None,
) -> Scores:
    """Compute scores from the inputs of layers."""
    if data is None or criterion == "sparsegpt":
        known = "pass data=loader" if criterion != "sparsegpt" else "write criterion='obs'"
        raise ConfigError(f"criterion={criterion!r} ranks no weights without data=: {known}")
    used = Data(inputs_of(model, data, samples))
    layers = calibrated_layers(model, include, exclude)
    _, scores = score_layers(
        model, layers, used, criterion, layer_sparsities(layers, "uniform", 0.0), 1e-3
    )
    assert isinstance(scores, Scores)
    return scores


def _rank_planes(scores: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Rank all weights together, ties in the order of (tensor, flat index); pack the ranks' bits.

    Returns:
        For each weight one packed mask a bit, lowest first.
    """
    flat = torch.cat([score.detach().reshape(-1).double().cpu() for score in scores.values()])
    if bool(flat.isnan().any()):
        raise StateError("scores are not a number: check the weights (has the loss diverged?)")
    ranks = torch.empty(len(flat), dtype=torch.int64)
    ranks[flat.argsort(stable=True)] = torch.arange(len(flat))
    parts = torch.split(ranks, [score.numel() for score in scores.values()])
    bits = range(len(flat).bit_length())
    return {
        name: [pack_bits((part >> bit) % 2 == 1) for bit in bits]
        for name, part in zip(scores, parts, strict=True)
    }


def _rank(saved: Mapping[str, Any], name: str) -> Tensor:
    """Return the ranks of a weight, which float64 holds exactly."""
    shape, planes = saved["shapes"][name], saved["planes"][name]
    parts = (unpack_bits(plane, shape).double() * 2.0**bit for bit, plane in enumerate(planes))
    return torch.stack([*parts]).sum(0)
