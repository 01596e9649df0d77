# SPDX-License-Identifier: MIT
"""Build a drawn fit and run it, from the start or from a checkpoint."""

import warnings
from contextlib import contextmanager

import torch
from fuzz_networks import Net, data
from fuzz_promises import Promises, bits
from lightning.pytorch.callbacks import Callback, Checkpoint
from tiny_fits import fit

import regrow
from regrow import RandomState
from regrow.criteria.base import needs_gradients
from regrow.data.tensor_loader import BatchLoader
from regrow.utils.errors import ConfigError, RegrowError

warnings.filterwarnings("ignore", module="lightning")


def build(name, given):
    """A callback from its name and arguments; a schedule within is made likewise."""
    given = dict(given)
    if isinstance(given.get("schedule"), tuple):
        kind, times = given["schedule"]
        given["schedule"] = getattr(regrow, kind)(**times)
    return getattr(regrow, name)(**given)


class Acts(Callback):
    """Change masks manually at some steps; a call that raises must change nothing."""

    def __init__(self, acts, pruning, watches):
        self.acts, self.pruning, self.watches = acts, pruning, watches
        self.last = -1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.last:
            return
        self.last = trainer.global_step
        for step, what, given in self.acts:
            if step == self.last:
                self.act(pl_module, what, given["amount"], given["names"])

    def act(self, module, what, amount, names):
        if what == "prune_to" and needs_gradients(self.pruning.pruner.criterion):
            return  # those that lie there are the last step's, and gone after a resume
        calls = {
            "prune_to": lambda: self.pruning.prune_to(amount),
            "unprune": lambda: self.pruning.unprune(names),
            "regrow": lambda: self.pruning.regrow(amount, names=names),
        }
        for watch in self.watches:
            watch.prepare()
        before = {name: bits(p).clone() for name, p in module.named_parameters()}
        masks = self.pruning.masks.digest()
        refused = None
        try:
            calls[what]()
        except RegrowError as error:
            refused = str(error)
        if refused is not None:
            assert refused
            assert self.pruning.masks.digest() == masks
            assert all(torch.equal(before[n], bits(p)) for n, p in module.named_parameters())


class Save(Checkpoint):
    """Save after one step, after all other callbacks."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


class Run:
    """One run of a fit: module, callbacks, Trainer.

    Args:
        spec: What to run.
        watched: Whether promises are checked.
    """

    def __init__(self, spec, watched=True):
        self.spec, self.module = spec, Net(spec.network, spec.make)
        if spec.precision == "64-true":  # Lightning loads a checkpoint before it makes it so
            self.module.double()
        self.error = None
        self.pruners = [build(*made) for made in spec.pruners]
        beside = [build(*made) for made in spec.beside]
        watching = ("SparsityMonitor", "AccuracyBudget", "Rewind")
        held = not spec.acts and all(name in watching for name, _ in spec.beside)
        alone = len(self.pruners) == 1
        self.watches = [
            Promises(pruning, given, alone, held)
            for pruning, (_, given) in zip(self.pruners, spec.pruners, strict=True)
            if watched
        ]
        self.acts = Acts(spec.acts, self.pruners[0], self.watches[:1])
        order = [self.acts, *self.pruners] if spec.first else [*self.pruners, self.acts]
        self.callbacks = [*self.watches, RandomState(), *order, *beside]

    def fit(self, *more, ckpt_path=None, **kw):
        spec = self.spec
        images, labels = data(spec.network, spec.batches)
        settings = {
            "max_epochs": spec.epochs,
            "accumulate_grad_batches": spec.accumulate,
            "gradient_clip_val": spec.clip,
            "precision": spec.precision,
            "data": BatchLoader(images, labels, batch_size=4, shuffle=True),
            "val": BatchLoader(images[:4], labels[:4], batch_size=4),
            "enable_checkpointing": any(isinstance(c, Checkpoint) for c in more),
        }
        self.trainer = fit(
            self.module, *self.callbacks, *more, ckpt_path=ckpt_path, **(settings | kw)
        )
        return self


@contextmanager
def default_dtype():
    """Lightning's true precisions set torch's default while a module runs; errors may leave it."""
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def refusals(run, late=()):
    """Store an expected error in `run.error`; except for late errors, no step was trained.

    Args:
        run: What is run within.
        late: Words of messages about what nobody can know before validation has run.
    """
    before, run.error = run.module.trained, None
    try:
        with default_dtype():
            yield
    except RegrowError as error:
        run.error = str(error)
    if run.error is not None:
        assert run.error
        known = any(words in run.error for words in late)
        assert known or run.module.trained == before, f"only while training: {run.error}"


def made(*args, **kw):
    """A run; None where a callback refuses its arguments."""
    try:
        return Run(*args, **kw)
    except ConfigError:
        return None
