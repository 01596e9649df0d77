# SPDX-License-Identifier: MIT
"""One-shot pruning with calibration data and without training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from regrow.calibration.joint_refit import refit_jointly
from regrow.calibration.layer_rows import LayerRows
from regrow.calibration.moments import (
    Data,
    check_all_run,
    input_moments,
    order_layers,
    paired_moments,
    squared_gradients,
)
from regrow.calibration.refit import refit_matrix
from regrow.calibration.scores import CRITERIA
from regrow.calibration.sequence_rows import find_rows
from regrow.criteria.precomputed import Scores
from regrow.masks.distributions import erk_densities
from regrow.masks.granularity import NofM, make_granularity
from regrow.masks.masks import Masks
from regrow.masks.targets import Target, select_targets
from regrow.pruning.functional import prune
from regrow.utils.batches import Batches, batch_size, batches_of, forward_arguments
from regrow.utils.errors import (
    ConfigError,
    StateError,
    check_choice,
    check_count,
    check_damping,
    check_sparsity,
)
from regrow.utils.logging import info
from regrow.utils.modes import in_mode
from regrow.utils.names import named_parameters
from regrow.utils.progress_bar import progress_bar
from regrow.utils.repeated_forward import MEMORY, RepeatedForward, digest_calls

NAMES = (*CRITERIA, "magnitude")
ROUNDS = 4  # of scores, masks and a refit, on the way to the sparsity
LARGE = 10**7  # weights above which there is one round, so that it takes minutes


@dataclass
class Calibration:
    """The result of `calibrate`.

    Attributes:
        masks: Masks by parameter name; pass them to `regrow.enforce` to train further.
        rows: Number of input rows that each refitted layer was fitted on.
        dense: The dense values of each parameter that calibration changed.
    """

    masks: Masks
    rows: dict[str, int] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """The masked fraction of the prunable weights."""
        return self.masks.sparsity

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Restore the parameters that calibration changed, biases included, bit-exactly.

        Raises:
            StateError: If the model lacks one of them.
        """
        named = named_parameters(model)
        if missing := [name for name in self.dense if name not in named]:
            raise StateError(f"this is another model: it has no parameter {missing[0]}")
        for name, values in self.dense.items():
            named[name].copy_(values)


def calibrate(
    model: nn.Module,
    data: Batches,
    sparsity: float,
    *,
    criterion: str = "obs",
    refit: bool | str = True,
    samples: int = 1024,
    distribution: str | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    damping: float = 1e-3,
    max_rows: int = 16384,
    **settings: Any,
) -> Calibration:
    """Prune a trained model in place with unlabelled data, without training.

    Linear, convolutional and recurrent layers and `nn.MultiheadAttention` are scored by the second
    moments of their inputs. Then, in the order in which layers run, kept weights and biases are
    refitted by least squares: a layer reproduces its outputs in the dense network from the inputs
    that the network pruned so far gives it. "obs" with a refit prunes in four rounds (in one above
    10 million weights). Memory: four copies of the weights, the inputs, 4 GiB of outputs, X^T X.

    Args:
        model: The model.
        data: A loader, a LightningDataModule or a tensor. A batch is a tensor, a tuple or list that
            begins with one, or a dict, of which the arguments of forward are used.
        sparsity: Fraction of the selected weights to prune, in [0, 1); reached exactly.
        criterion: "obs", "sparsegpt", "wanda", "ria" or "magnitude".
        refit: Whether kept weights are refitted; "joint": in the end those of all layers together.
        samples: Number of examples to use, rounded up to whole batches.
        distribution: "erk" or "uniform", for "obs" and "magnitude" also "global" or "lamp"; None:
            "global" where possible, else "erk".
        include: Patterns of parameters to prune; None: see `regrow.prune`.
        exclude: Patterns of parameters not to prune.
        damping: Ridge term, as a fraction of the inputs' mean square (with a bias: variance).
        max_rows: Largest number of output positions per batch that are sampled for a layer.
        settings: `granularity`, `layers` (not with "sparsegpt"), `min_density`, `on_misfit` and
            `seed` of `regrow.prune`.

    Returns:
        The masks, and the dense values with which `undo` restores the model.

    Raises:
        ConfigError, StateError: For invalid settings, other layers, inputs that are not finite. The
            model is unchanged.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> result = calibrate(net, [torch.randn(64, 8)], 0.5)
        >>> result.sparsity, int((net[0].weight == 0).sum() + (net[2].weight == 0).sum())
        (0.5, 80)
    """
    check_choice("criterion", criterion, NAMES)
    settings |= {"distribution": check_distribution(criterion, distribution)}
    settings |= {"include": include, "exclude": exclude}
    sparsity, refit = check_sparsity("sparsity", sparsity), check_refit(refit)
    damping, samples = check_damping(damping), check_count("samples", samples)
    used = Data(inputs_of(model, data, samples), max_rows, settings.get("seed", 0))
    return _prune_and_refit(model, used, sparsity, criterion, refit, damping, settings)


def _prune_and_refit(
    model: nn.Module,
    data: Data,
    sparsity: float,
    criterion: str,
    refit: bool | str,
    damping: float,
    settings: Mapping[str, Any],
) -> Calibration:
    """Prune and refit; restore the model after an error."""
    if criterion == "sparsegpt" and settings.get("layers"):
        raise ConfigError(
            "criterion='sparsegpt' sweeps each layer for the sparsity of its distribution: leave "
            "layers= out, or write criterion='obs'"
        )
    layers = calibrated_layers(model, settings["include"], settings["exclude"])
    dense = copy.deepcopy(model) if refit else model
    before = {name: p.detach().clone() for name, p in named_parameters(model).items()}
    rounds = rounds_of(layers, criterion, refit, settings.get("granularity", "weight"))
    try:
        with progress_bar(len(layers) * rounds + (refit == "joint")) as advance:
            ordered, scores = score_in_rounds(
                model, layers, data, criterion, sparsity, damping, settings, rounds, advance
            )
            result = Calibration(prune(model, sparsity, criterion=scores, **settings))
            if refit:
                result.rows = refit_layers(
                    model, dense, ordered, result.masks, data, damping, advance=advance
                )
            if refit == "joint":
                advance("refit of all layers together")
                refit_jointly(model, dense, ordered, result.masks, data)
    except BaseException:
        Calibration(Masks({}), dense=before).undo(model)
        raise
    now = named_parameters(model)
    result.dense = {n: v for n, v in before.items() if not torch.equal(v, now[n].detach())}
    return result


def rounds_of(
    layers: Sequence[LayerRows], criterion: str, refit: bool | str, granularity: str
) -> int:
    """Return the number of rounds in which a criterion prunes, each with scores and a refit.

    Example:
        >>> layers = find_rows(nn.Linear(8, 2))
        >>> rounds_of(layers, "obs", True, "weight"), rounds_of(layers, "obs", True, "2:4")
        (4, 1)
    """
    fixed = isinstance(make_granularity(granularity), NofM)
    large = sum(layer.weight.numel() for layer in layers) > LARGE
    return ROUNDS if refit and criterion == "obs" and not fixed and not large else 1


def score_in_rounds(
    model: nn.Module,
    layers: Sequence[LayerRows],
    data: Data,
    criterion: str,
    sparsity: float,
    damping: float,
    settings: Mapping[str, Any],
    rounds: int,
    advance: Callable[[str], None] | None = None,
) -> tuple[list[LayerRows], Scores | str]:
    """Score the layers for a last round, after earlier ones that prune and refit a copy.

    The model stays dense. Each of `rounds_of` keeps the same fraction of the weights. Returns the
    layers in the order in which they run, and the last scores; `settings` are those of
    `regrow.prune`.
    """
    wanted = layer_sparsities(layers, settings["distribution"], sparsity)
    ordered, scores = score_layers(model, layers, data, criterion, wanted, damping)
    if rounds == 1:
        return ordered, scores
    copied = copy.deepcopy(model)
    twins = {
        twin.name: twin
        for twin in calibrated_layers(copied, settings["include"], settings["exclude"])
    }
    again = [twins[layer.name] for layer in ordered]
    for done in range(1, rounds):
        now = dict(settings)
        if own := settings.get("layers"):
            now["layers"] = {n: _part_of(value, done / rounds) for n, value in own.items()}
        masks = prune(copied, _part_of(sparsity, done / rounds), criterion=scores, **now)
        refit_layers(copied, model, again, masks, data, damping, advance=advance)
        _, scores = score_layers(copied, again, data, criterion, wanted, damping)
    return ordered, scores


def _part_of(sparsity: float, share: float) -> float:
    """Return the sparsity after a share of the rounds, which keep equal fractions."""
    return float(1 - (1 - sparsity) ** share)


def check_distribution(criterion: str, distribution: str | None) -> str:
    """Return a distribution that goes with a criterion, or its default for None."""
    within = criterion in ("wanda", "ria", "sparsegpt")
    if distribution is None:
        return "erk" if within else "global"
    if within and distribution not in ("erk", "uniform"):
        raise ConfigError(
            f"criterion={criterion!r} compares weights within a layer only: write "
            "distribution='erk' or 'uniform', or criterion='obs'"
        )
    return distribution


def check_refit(refit: object) -> bool | str:
    """Return `refit` if it is True, False or "joint"."""
    if isinstance(refit, bool) or refit == "joint":
        return refit
    raise ConfigError(f"refit must be True, False or 'joint', got {refit!r}")


def inputs_of(model: nn.Module, data: Batches, samples: int | None) -> list[Any]:
    """Return the inputs of the first batches, until there are so many examples; None: of all.

    Of a tuple or list that is the first element, of a dict what the model's forward takes.

    Raises:
        ConfigError: If there are none.
    """
    found, count = list[Any](), 0
    for batch in batches_of(data):
        inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
        inputs = forward_arguments(model, inputs) if isinstance(inputs, Mapping) else inputs
        found.append(inputs)
        count += batch_size(inputs)
        if samples is not None and count >= samples:
            break
    if not found:
        raise ConfigError("calibration needs a batch or more, got none: pass a loader of inputs")
    return found


def calibrated_layers(
    model: nn.Module, include: Iterable[str] | None, exclude: Iterable[str] | None
) -> list[LayerRows]:
    """Return the selected layers.

    Raises:
        ConfigError: If a selected weight belongs to another kind of layer.
    """
    return layers_of(model, select_targets(model, include, exclude).targets)


def layers_of(model: nn.Module, targets: Iterable[Target]) -> list[LayerRows]:
    """Return the layers of some targets; see `calibrated_layers`."""
    known, names = {layer.name: layer for layer in find_rows(model)}, [t.name for t in targets]
    if other := [name for name in names if name not in known]:
        raise ConfigError(
            f"{other[0]} is no weight that calibration knows, of one Linear layer, convolution, "
            f"recurrent layer or nn.MultiheadAttention, not shared: write exclude={other}"
        )
    return [known[name] for name in names]


def score_layers(
    model: nn.Module,
    layers: Sequence[LayerRows],
    data: Data,
    criterion: str,
    sparsities: Mapping[str, float],
    damping: float,
) -> tuple[list[LayerRows], Scores | str]:
    """Return the layers in the order in which they run, and a criterion for `regrow.prune`.

    `sparsities` of each layer are for "sparsegpt", `damping` for "obs". Raises `ConfigError` if a
    layer does not run, `StateError` for inputs that are not finite.
    """
    if criterion == "magnitude":
        return order_layers(model, layers, data.batches, all_run=True), criterion
    found = input_moments(model, layers, data)
    check_all_run(layers, found)
    by_name = {layer.name: layer for layer in layers}
    ordered = [by_name[name] for name in found]
    slopes = squared_gradients(model, ordered, data) if criterion == "obs" else {}
    return ordered, Scores(
        {
            name: score_layer(
                by_name[name],
                moments.xx,
                criterion,
                sparsities[name],
                damping,
                slopes.get(name),
            )
            for name, moments in found.items()
        }
    )


def layer_sparsities(
    layers: Sequence[LayerRows], distribution: str, sparsity: float
) -> dict[str, float]:
    """Return the sparsity of each layer under "erk", else the same for all."""
    shapes = [layer.weight.shape for layer in layers]
    densities = erk_densities(shapes, sparsity) if distribution == "erk" else []
    kept = densities or [1 - sparsity] * len(layers)
    return {layer.name: 1 - density for layer, density in zip(layers, kept, strict=True)}


@torch.no_grad()
def score_layer(
    layer: LayerRows,
    xx: Tensor,
    criterion: str,
    sparsity: float,
    damping: float,
    slopes: Tensor | None = None,
) -> Tensor:
    """Return the scores of a layer's weight, in its shape.

    Given `squared_gradients` g_i of its rows, they are multiplied by g_i / tr(X^T X), for J^T J of
    a row is then about X^T X times that (Martens and Grosse 2015, K-FAC).
    """
    more: Sequence[float] = {"obs": (damping,), "sparsegpt": (sparsity,)}.get(criterion, ())
    rule = CRITERIA[criterion]
    parts = [rule(w, h, *more) for w, h in zip(layer.matrix, xx, strict=True)]
    scores = torch.stack(parts)
    if slopes is not None:
        size = xx.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30)
        scores *= (slopes / size[:, None])[:, :, None]
    return layer.to_weight(scores)


@torch.no_grad()
def refit_layers(
    model: nn.Module,
    dense: nn.Module,
    layers: Sequence[LayerRows],
    masks: Mapping[str, Tensor],
    data: Data,
    damping: float,
    kept: Mapping[str, Tensor] | None = None,
    advance: Callable[[str], None] | None = None,
) -> dict[str, int]:
    """Refit layers in their order, each on what the model with the layers before it computes.

    Layers without a mask are left as they are. `kept` says by weight name which outputs of a layer
    of the dense copy the model's layer has, where it lacks some. Returns the number of input rows
    of each layer. `advance` is called with each before its refit.
    """
    twins = dict(zip(model.modules(), dense.modules(), strict=True))
    pairs = [(x, replace(x, module=twins[x.module])) for x in layers if x.name in masks]
    before = [(p, p.clone()) for layer, _ in pairs for p in _parameters_of(layer)]

    def refit(memory: int) -> dict[str, int]:
        with RepeatedForward(model, memory) as own, RepeatedForward(dense, memory) as theirs:
            rows = _refit_in_order(own, theirs, pairs, masks, data, damping, kept, advance)
            if memory:
                with data.together(), in_mode(model, training=False), in_mode(dense, False):
                    own.check(data.batches)
                    theirs.check(data.batches)
            return rows

    try:
        with data.together():
            _check_called_once(model, [layer for layer, _ in pairs], data.batches[0])
        return refit(MEMORY)
    except Exception as error:  # the model depends on side effects, or raises without them too
        info(f"the refit runs whole forward passes, which take longer: {error}")
        for parameter, values in before:
            parameter.copy_(values)
    return refit(0)


def _refit_in_order(
    model: RepeatedForward,
    dense: RepeatedForward,
    pairs: Sequence[tuple[LayerRows, LayerRows]],
    masks: Mapping[str, Tensor],
    data: Data,
    damping: float,
    kept: Mapping[str, Tensor] | None,
    advance: Callable[[str], None] | None,
) -> dict[str, int]:
    """Refit layers, each given with its dense twin, as `refit_layers` does."""
    rows = {}
    for layer, twin in pairs:
        if advance is not None:
            advance(f"refit of {layer.name}")
        outputs = None if kept is None else kept.get(layer.name)
        moments = paired_moments(layer, model, twin, dense, data, outputs)
        mask = masks[layer.name].to(layer.weight.device, torch.bool)
        keep, bias = layer.to_matrix(mask), layer.bias
        matrix, shift = refit_matrix(layer.matrix, keep, moments, bias is not None, damping)
        layer.weight.copy_(layer.to_weight(matrix).masked_fill(~mask, 0.0))
        if bias is not None and shift is not None:
            bias.copy_(shift.flatten())
        rows[layer.name] = moments.rows
    return rows


def _parameters_of(layer: LayerRows) -> list[Tensor]:
    return [layer.weight] if layer.bias is None else [layer.weight, layer.bias]


def _check_called_once(model: nn.Module, layers: Sequence[LayerRows], batch: Any) -> None:
    """Raise `StateError` unless a batch calls each layer once."""
    with in_mode(model, training=False):
        calls = digest_calls(model, {layer.module for layer in layers}, batch)
    if any(len(digests) != 1 for digests in calls.values()):
        raise StateError("a layer is not called once")
