# SPDX-License-Identifier: MIT
"""SynFlow scores, computed without data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from regrow.criteria.precomputed import Scores
from regrow.criteria.saliency import unsharded_targets
from regrow.distributed.shard import local_tensor
from regrow.masks.targets import Target, select_targets
from regrow.masks.topk import global_topk_masks
from regrow.utils.batches import call
from regrow.utils.errors import ConfigError, StateError, check_count, check_sparsity

# Activations and norms, as functions, methods and in place: identities in the linear network.
_IDENTITY_NAMES = (
    "relu relu6 leaky_relu rrelu prelu elu selu celu gelu silu mish tanh sigmoid logsigmoid "
    "hardtanh hardsigmoid hardswish hardshrink softshrink tanhshrink softplus softsign threshold "
    "softmax log_softmax clamp clip batch_norm layer_norm group_norm instance_norm rms_norm "
    "local_response_norm dropout dropout1d dropout2d dropout3d alpha_dropout "
    "feature_alpha_dropout"
)
_IDENTITIES = {
    function
    for place in (torch, functional, Tensor)
    for word in _IDENTITY_NAMES.split()
    for name in (word, f"{word}_")
    if (function := getattr(place, name, None)) is not None
}

# What flows is at least 0, where ReLU is the identity.
_WITHOUT_TANH: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.rnn_tanh: torch.rnn_relu,
    torch.rnn_tanh_cell: torch.rnn_relu_cell,
}


def synflow(
    model: nn.Module,
    example_input: Any,
    sparsity: float,
    *,
    rounds: int = 100,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> Scores:
    """Compute SynFlow scores |w| dR/d|w|, with R the summed output of a linear network for ones.

    The linear network has weights |w|, zero biases, and no activations and norms. Round k of n
    prunes a copy, in double precision, to density (1 - sparsity)^(k / n) over all layers together
    and scores again; pruning by the returned scores is the last round. No data is used.
    Not linear are the gates of LSTM and GRU, products, quotients and differences of activations in
    `forward`, and the softmax within `nn.MultiheadAttention` and `scaled_dot_product_attention`:
    where all tokens are equal, as here, queries and keys get no flow, and are pruned first.

    Args:
        model: The model; not changed.
        example_input: An input, a tuple or a dict of arguments; only shapes matter.
        sparsity: The target, in [0, 1).
        rounds: Number of scoring rounds.
        include: Patterns of parameters or modules; None: as in `regrow.prune`.
        exclude: Patterns of those to leave out.
        kept: Bool masks of earlier pruning, by name; None: nothing is pruned.

    Returns:
        Scores by parameter name, float64; -1 for weights pruned in earlier rounds.

    Raises:
        ConfigError: For invalid settings, sharded weights, and layers without flow.
        StateError: If the flow exceeds double precision.

    Source: Tanaka et al. 2020, arXiv 2006.05467, algorithm 1.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> _ = net[2].weight.data.fill_(-2.0)
        >>> {name: s.tolist() for name, s in synflow(net, torch.zeros(1, 2), 0.0, rounds=1).items()}
        {'0.weight': [[6.0, 2.0]], '2.weight': [[8.0]]}
    """
    check_sparsity("sparsity", sparsity)
    check_count("rounds", rounds)
    names = [target.name for target in unsharded_targets(model, include, exclude)]
    linear = _linear_copy(model)
    targets = select_targets(linear, include, exclude).targets
    masks = _first_masks(targets, kept)
    total, start = sum(mask.numel() for mask in masks.values()), 1 - _pruned_share(masks)
    for done in range(1, rounds):
        density = start * ((1 - sparsity) / start) ** (done / rounds)
        scores = _flow_scores(linear, targets, example_input, pruned=done > 1)
        pruned = round(max(1 - density, _pruned_share(masks)) * total)
        chosen = global_topk_masks([*scores.values()], pruned, [*masks.values()], names=names)
        masks = dict(zip(names, chosen, strict=True))
        _zero_pruned(targets, masks)
    scores = _flow_scores(linear, targets, example_input, pruned=rounds > 1)
    return Scores({name: scores[name].masked_fill(~masks[name], -1.0) for name in names})


def _first_masks(targets: Sequence[Target], kept: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the masks of earlier pruning, with pruned weights zero; without, those of nothing."""
    masks = {target.name: torch.ones_like(target.weight, dtype=torch.bool) for target in targets}
    if kept is not None:
        masks = {name: local_tensor(kept[name]).to(mask.device) for name, mask in masks.items()}
        _zero_pruned(targets, masks)
    return masks


def _pruned_share(masks: Mapping[str, Tensor]) -> float:
    total = sum(mask.numel() for mask in masks.values())
    return (total - sum(int(mask.count_nonzero()) for mask in masks.values())) / total


def _zero_pruned(targets: Iterable[Target], masks: Mapping[str, Tensor]) -> None:
    for target in targets:
        target.weight.masked_fill_(~masks[target.name], 0.0)


def _linear_copy(model: nn.Module) -> nn.Module:
    """Copy a model with weights |w| and zero biases, in double precision."""
    linear = copy.deepcopy(model).double().eval()
    first = next(linear.parameters())
    if first.device.type == "mps":  # it has no double precision
        linear = linear.cpu()
    for name, parameter in linear.named_parameters():
        last = name.rpartition(".")[2]  # "bias", "in_proj_bias", "bias_ih_l0", "bias_k"
        is_bias = last.startswith("bias") or last.endswith("bias")
        parameter.data = parameter.data.zero_() if is_bias else parameter.data.abs()
        parameter.requires_grad_(True)
    return linear


def _flow_scores(
    model: nn.Module, targets: Sequence[Target], example_input: Any, *, pruned: bool
) -> dict[str, Tensor]:
    """Compute |w| dR/d|w| of every target; before anything is pruned each layer must have flow."""
    weights = [target.parameter for target in targets]
    device = weights[0].device
    with (
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
        _IdentityMode(),
        torch.autocast(device.type, enabled=False),
    ):
        total = _summed_output(model, example_input, device)
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    scores = {}
    for target, grad in zip(targets, gradients, strict=True):
        score = torch.zeros_like(target.weight) if grad is None else grad * target.weight
        if not score.isfinite().all():
            raise StateError(
                f"the flow through {target.name} exceeds double precision: the network is too deep "
                "or its weights too large; write method='snip' or 'grasp'"
            )
        if not (pruned or score.any()):
            raise ConfigError(
                f"nothing flows through {target.name}, so its weights have no order: leave it "
                f"dense, exclude=[{target.name!r}], or write method='snip' or 'grasp'"
            )
        scores[target.name] = score.detach()
    return scores


def _summed_output(model: nn.Module, example_input: Any, device: torch.device) -> Tensor:
    """Sum a model's outputs for one example of ones."""

    def ones(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        dtype = torch.float64 if value.is_floating_point() else value.dtype
        return torch.ones(value[:1].shape, dtype=dtype, device=device)

    output = call(model, tree_map(ones, example_input))
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    sums = [leaf.sum() for leaf in leaves if leaf.is_floating_point() and leaf.requires_grad]
    if not sums:
        raise ConfigError("the model's output has no tensor that depends on its weights")
    return torch.stack(sums).sum()


class _IdentityMode(TorchFunctionMode):
    """Replaces activations and norms by the identity."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _IDENTITIES:
            return args[0] if args else kwargs["input"]
        return _WITHOUT_TANH.get(func, func)(*args, **kwargs)
