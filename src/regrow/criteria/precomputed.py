# SPDX-License-Identifier: MIT
"""Precomputed scores, by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from regrow.utils.errors import StateError


class Scores(Mapping[str, Tensor]):
    """Importance scores by parameter name, higher = keep; a criterion for `prune` and `Pruner`.

    Args:
        values: One tensor per parameter, of its shape.

    Example:
        >>> import torch, regrow
        >>> net = torch.nn.Linear(4, 1)
        >>> scores = Scores({"weight": torch.tensor([[3.0, 1.0, 4.0, 2.0]])})
        >>> regrow.prune(net, 0.5, criterion=scores)["weight"].tolist()
        [[True, False, True, False]]
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def update(self, name: str, weight: Tensor, grad: Tensor) -> None:
        """Do nothing: the scores are already computed."""

    def scores(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores of one parameter, on its device.

        Raises:
            StateError: If there are none.
        """
        if name not in self._values:
            raise StateError(
                f"there are no scores of {name} (there are some of {', '.join(self._values)}): "
                "compute them with the same include and exclude"
            )
        return self._values[name].to(weight.device)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._values)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._values = dict(state)


def needs_data(name: str, message: str) -> Callable[[Tensor], Tensor]:
    """Make a criterion that names a method and raises, where weights alone do not rank."""
    return _NeedsData(name, message)


@dataclass(frozen=True)
class _NeedsData:  # no local function, which could not be pickled
    name: str
    message: str

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, weight: Tensor) -> Tensor:
        raise StateError(self.message)
