# SPDX-License-Identifier: MIT
"""Scores by the Fisher information of blocks of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regrow.utils.errors import StateError, check_count, check_positive, check_sparsity

CHUNK = 2**22  # elements of the blocks that are inverted at once


class BlockFisher:
    """Scores w_j^2 / [F^-1]_jj, the loss by which the optimal brain surgeon removes a weight.

    F = damping I + the mean of g g^T over steps, in blocks of consecutive weights, where g is a
    step's gradient; recent steps count more, with weights `decay^age`. The first event needs at
    least one optimizer step before it. Memory: `block` float64 numbers per weight.

    Args:
        block: Size of a block.
        damping: Above 0, in the unit of squared gradients.
        decay: In [0, 1): 0.99 averages over about the last 100 steps.

    Source: Singh and Alistarh 2020 (WoodFisher), arXiv 2004.14340, sections 3 and 4; Kurtic et al.
        2022 (oBERT), arXiv 2203.07259, whose blocks have 50 weights.

    Example:
        >>> fisher = BlockFisher(block=2, damping=1.0)
        >>> fisher.update("w", torch.ones(2), torch.tensor([1.0, 0.0]))
        >>> fisher.scores("w", torch.ones(2))
        tensor([2., 1.])
    """

    def __init__(self, block: int = 50, damping: float = 1e-6, decay: float = 0.99) -> None:
        self.block = check_count("block", block)
        self.damping = check_positive("damping", damping, "1e-6")
        self.decay = check_sparsity("decay", decay)
        self._means: dict[str, Tensor] = {}  # of g g^T, (blocks, block, block), towards 0 at first
        self._steps: dict[str, int] = {}

    @torch.no_grad()
    def update(self, name: str, weight: Tensor, grad: Tensor) -> None:
        g = self._blocks(grad)
        if name not in self._means:
            self._means[name], self._steps[name] = g.new_zeros(len(g), self.block, self.block), 0
        mean = self._means[name].to(g.device)  # a checkpoint is loaded to the CPU
        self._means[name] = mean.baddbmm_(
            g[:, :, None], g[:, None, :], beta=self.decay, alpha=1 - self.decay
        )
        self._steps[name] += 1

    @torch.no_grad()
    def scores(self, name: str, weight: Tensor) -> Tensor:
        if name not in self._means:
            raise StateError(
                f"block_fisher has seen no gradient of {name}: prune after at least one step, and "
                "leave out frozen layers"
            )
        w = self._blocks(weight)
        scale = 1 / (1 - self.decay ** self._steps[name])
        scores = torch.empty_like(w, dtype=torch.float32)
        step = max(1, CHUNK // self.block**2)
        for start in range(0, len(w), step):
            part = w[start : start + step]
            kept = part != 0  # pruned weights are no part of the blocks
            fisher = self._means[name][start : start + step].to(w.device) * scale
            fisher = fisher * (kept[:, :, None] & kept[:, None, :])
            fisher.diagonal(dim1=1, dim2=2).add_(self.damping)
            factor, failed = torch.linalg.cholesky_ex(fisher)
            if bool(failed.any()):
                raise StateError(
                    f"damping={self.damping:g} is lost beside the squared gradients of {name}, up "
                    f"to {float(fisher.max()):.1e}: write criterion=BlockFisher(damping="
                    f"{float(fisher.max()) * 1e-6:.0e})"
                )
            diagonal = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
            scores[start : start + step] = part.square() / diagonal
        return scores.flatten()[: weight.numel()].view_as(weight)

    def state_dict(self) -> dict[str, Tensor]:
        # copies, because means change in place while another thread may write the file
        steps = {f"{name}/steps": torch.tensor(count) for name, count in self._steps.items()}
        return {name: mean.clone() for name, mean in self._means.items()} | steps

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        names = [name for name in state if not name.endswith("/steps")]
        self._means = {name: state[name].double() for name in names}
        self._steps = {name: int(state[f"{name}/steps"]) for name in names}

    def _blocks(self, values: Tensor) -> Tensor:
        """Reshape values to (blocks, block) with zeros at the end.

        In float64: in float32 a small damping would be lost beside squared gradients. MPS has none.
        """
        wide = torch.float32 if values.device.type == "mps" else torch.float64
        flat = values.detach().to(wide).flatten()
        return torch.nn.functional.pad(flat, (0, -len(flat) % self.block)).view(-1, self.block)
