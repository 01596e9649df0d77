# SPDX-License-Identifier: MIT
"""A callback that regrows weights of a running fit when a JSON file appears.

List it before the pruning callback, so that it reads dense gradients::

    pruning = MagnitudePruning(0.9)
    Trainer(callbacks=[RegrowOnRequest(pruning, "regrow.json"), pruning])

While the fit runs, create the file in a shell, with `mv` so that it appears complete::

    echo '{"fraction": 0.1, "by": "gradient", "init": "zero"}' > new && mv new regrow.json

The file is then renamed to regrow.json.done, or, with the error appended, to regrow.json.refused.
"""

import json
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

import regrow


class RegrowOnRequest(pl.Callback):
    """Look for a file at each optimizer step and regrow what it asks for.

    Args:
        pruning: The pruning callback whose weights regrow.
        path: A JSON file with arguments of `regrow.Pruner.regrow`: `fraction` or `count`, `by`,
            `init`, `names`, `train`.
    """

    def __init__(self, pruning: regrow.MagnitudePruning, path: str | Path) -> None:
        self.pruning, self.path = pruning, Path(path)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        """Read the file on rank 0, and regrow on all ranks."""
        there = trainer.is_global_zero and self.path.exists()
        text = trainer.strategy.broadcast(self.path.read_text() if there else None)
        if text is None:
            return
        try:
            self.pruning.regrow(**json.loads(text))["cause"] = "request"
        except (ValueError, TypeError, regrow.StateError) as error:  # bad JSON, key or value
            rank_zero_warn(f"{self.path} is refused: {error}")
            text, ending = f"{text}\n\nrefused: {error}\n", "refused"
        else:
            ending = "done"
        if trainer.is_global_zero:
            self.path.write_text(text)
            self.path.replace(f"{self.path}.{ending}")
