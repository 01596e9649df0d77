# SPDX-License-Identifier: MIT
"""Claims: removed values take only their own bytes; restoring a snapshot costs one state copy.

The layers of a ResNet-18, 11 million weights, SGD with momentum, 90 % pruned in one event. Bytes
are those of every tensor that is kept, and of what `torch.save` writes. An event is timed against
one that keeps nothing; taking and restoring a snapshot against `copy_` of weights and moments into
allocated memory (`clone`, which allocates it, is listed too).
"""

import copy
import io
import statistics
from types import SimpleNamespace

import torch
from _bench import arguments, interleaved, ratio, resnet18, show

from regrow.callbacks.accuracy_budget import FitSnapshot
from regrow.pruning.pruner import Pruner
from regrow.schedules.progress import Progress
from regrow.utils.snapshot import TrainingSnapshot

SPARSITY = 0.9
NONE, VALUES, MOMENTS = False, True, "moments"
LABELS = {NONE: "nothing kept", VALUES: "values kept", MOMENTS: "moments kept too"}
COPY, CLONE = "copy_ of the state", "clone of the state"
# what is saved and restored, and the allowed time as a multiple of `copy_`
REMEMBER, BACK = "Rewind: save", "Rewind: restore"
SNAPSHOT, UNDO = "AccuracyBudget: save", "AccuracyBudget: restore"
MOST = {REMEMBER: 3, BACK: 3, SNAPSHOT: 6, UNDO: 6}


def trained():
    """A model and its optimizer after a step, so that there are moments."""
    model = resnet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def held(value):
    """Bytes of all tensors in an object."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(held, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(held, value))
    return held(vars(value)) if hasattr(value, "__dict__") else 0


def written(value):
    """Bytes of a checkpoint."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.tell()


def pruned(keep):
    """A pruner after its event, its model and the optimizer."""
    model, optimizer = trained()
    pruner = Pruner(model, keep_removed=keep)
    pruner.prune_to(SPARSITY, [optimizer])
    return pruner, model, optimizer


def keeping(model, optimizer, rounds):
    """Rows and claims of stored removed values."""

    def event(keep):
        def ready():
            own = copy.deepcopy(model)
            other = torch.optim.SGD(own.parameters(), lr=1e-3, momentum=0.9)
            other.load_state_dict(optimizer.state_dict())
            pruner = Pruner(own, keep_removed=keep)
            return lambda: pruner.prune_to(SPARSITY, [other])

        return ready

    found = interleaved({keep: event(keep) for keep in LABELS}, rounds)
    rows, claims, checkpoint = [], {}, {}
    for keep, tensors in zip(LABELS, (0, 1, 2), strict=True):  # of each pruned weight
        pruner, own, other = pruned(keep)
        gone = 4 * tensors * pruner.pruned
        vault = held(pruner.state.removed_weights)
        state = {"model": own.state_dict(), "optimizer": other.state_dict()}
        checkpoint[keep] = written(state | {"pruner": pruner.state_dict()})
        more = checkpoint[keep] - checkpoint[NONE]
        rows.append(
            {
                "what": LABELS[keep],
                "MB stored": vault / 1e6,
                "MB removed": gone / 1e6,
                "checkpoint, MB": checkpoint[keep] / 1e6,
                "ms": 1e3 * statistics.median(found[keep]),
                "time": ratio(found, keep, NONE),
            }
        )
        if gone:
            claims[f"stored / removed, {LABELS[keep]}"] = (vault / gone, 1)
            claims[f"growth of a checkpoint / removed, {LABELS[keep]}"] = (more / gone, 1.001)
    claims["time of an event, values kept / nothing kept"] = (ratio(found, VALUES, NONE), 2)
    return rows, claims


def going_back(rounds):
    """Rows and claims of rewinding and of rolling back."""
    pruner, model, optimizer = pruned(NONE)
    tensors = [t for p in model.parameters() for t in (p.detach(), *optimizer.state[p].values())]
    copies = [tensor.clone() for tensor in tensors]
    state = held(tensors)
    trainer = SimpleNamespace(optimizers=[optimizer])
    access = SimpleNamespace(pruner=pruner, progress=Progress())

    def copied():
        for there, tensor in zip(copies, tensors, strict=True):
            there.copy_(tensor)

    def remember():
        return TrainingSnapshot(model, moments=[optimizer])

    def take():
        return FitSnapshot.take(trainer, model, access)

    memory, snapshot = remember(), take()
    variants = {
        COPY: copied,
        CLONE: lambda: [tensor.clone() for tensor in tensors],
        REMEMBER: remember,
        BACK: lambda: memory.restore(model, moments=[optimizer]),
        SNAPSHOT: take,
        UNDO: lambda: snapshot.restore(trainer, model, access),
    }
    found = interleaved({name: lambda act=act: act for name, act in variants.items()}, rounds)
    sizes = {
        COPY: state,
        "Rewind: save": held(memory),
        "AccuracyBudget: save": held(snapshot),
    }
    rows = [
        {
            "what": name,
            "MB stored": sizes[name] / 1e6 if name in sizes else "",
            "MB removed": "",
            "checkpoint, MB": "",
            "ms": 1e3 * statistics.median(found[name]),
            "time": ratio(found, name, COPY),
        }
        for name in variants
    ]
    claims = {f"bytes, {n} / state": (sizes[n] / state, 1.05) for n in (REMEMBER, SNAPSHOT)}
    return rows, claims | {f"time, {n} / copy_": (ratio(found, n, COPY), MOST[n]) for n in MOST}


def main():
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, claims = keeping(*trained(), options.rounds)
    more_rows, more_claims = going_back(options.rounds)
    show("Stored state", rows + more_rows, claims | more_claims, options.out)


if __name__ == "__main__":
    main()
