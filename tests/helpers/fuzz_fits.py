# SPDX-License-Identifier: MIT
"""Hypothesis strategies for short fits, as plain values from which a fit can be rebuilt."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fuzz_networks import Conv, Dense, networks
from hypothesis import strategies as st
from torch import optim

OPTIMIZERS = {
    "SGD": partial(optim.SGD, lr=0.05, weight_decay=0.1),
    "momentum": partial(optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    "fused": partial(optim.SGD, lr=0.02, momentum=0.9, fused=True),
    "Adam": partial(optim.Adam, lr=0.01, weight_decay=0.1, foreach=True),
    "AdamW": partial(optim.AdamW, lr=0.01, amsgrad=True),
    "RMSprop": partial(optim.RMSprop, lr=0.002, momentum=0.9, centered=True),
    "Rprop": partial(optim.Rprop, lr=0.002),
    "LBFGS": partial(optim.LBFGS, lr=0.05, max_iter=2, history_size=3),
    "Adagrad": partial(optim.Adagrad, lr=0.01, initial_accumulator_value=0.1),
    "NAdam": partial(optim.NAdam, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": partial(optim.RAdam, lr=0.01),
    "Adadelta": partial(optim.Adadelta, lr=0.5),
    "Adamax": partial(optim.Adamax, lr=0.01),
    "ASGD": partial(optim.ASGD, lr=0.02),
    "Adafactor": partial(optim.Adafactor, lr=0.01),
}
Made = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Fit:
    """Everything that makes a fit; callbacks by name and arguments."""

    network: Dense | Conv
    optimizer: str
    split: bool  # whether decay is for weights alone
    pruners: tuple[Made, ...]
    beside: tuple[Made, ...] = ()
    acts: tuple[tuple[int, str, dict[str, Any]], ...] = ()
    first: bool = False  # whether acts come before the pruners look
    batches: int = 4
    epochs: int = 2
    accumulate: int = 1
    clip: float | None = None
    precision: str = "32-true"
    kill: int = 3  # the step that is gone on from

    @property
    def resumable(self):
        """Whether torch resumes exactly: it casts the state of some optimizers when loading."""
        plain = self.precision in ("32-true", "bf16-mixed") and not getattr(
            self.network, "double", False
        )
        return plain or self.optimizer not in ("ASGD", "NAdam", "Adafactor")

    def make(self, module):
        """The optimizer of a module."""
        parameters = list(module.parameters())
        if self.split and self.optimizer != "LBFGS":
            wide = [p for p in parameters if p.dim() > 1]
            rest = [p for p in parameters if p.dim() <= 1]
            decay = [{"params": wide}, {"params": rest, "weight_decay": 0.0}]
            parameters = [group for group in decay if group["params"]]
        return OPTIMIZERS[self.optimizer](parameters)


sparsities = st.one_of(st.sampled_from([0.5, 0.9, 0.75, 0.0]), st.floats(0, 0.97))
rarely = st.sampled_from([False] * 7 + [True])
anywhen = st.one_of(
    st.integers(0, 12).map(lambda n: f"{n}it"),
    st.integers(0, 3).map(lambda n: f"{n}ep"),
    st.floats(0, 1).map(lambda x: round(x, 2)),
    st.just(0),
)
anyspan = st.fixed_dictionaries({"begin": anywhen, "end": anywhen, "every": anywhen})
parts = st.sampled_from(
    [None] * 20 + ["body.0", ["@last"], ["@first"], "@depthwise", ["body.?"], "body.0.bias", "nope"]
)


def named(name, arguments):
    return st.tuples(st.just(name), arguments)


def step(total):
    return st.integers(0, total - 1).map(lambda n: f"{n}it")


@st.composite
def spans(draw, total):
    """Times that follow one another within a fit, most of the time."""
    if draw(rarely):
        return draw(anyspan)
    begin, end = sorted(draw(st.tuples(*[st.integers(0, total - 1)] * 2)))
    every = draw(st.integers(1, max(1, end - begin)))
    times = {"begin": f"{begin}it", "end": f"{end}it", "every": f"{every}it"}
    if draw(st.booleans()):
        times |= {"begin": begin / total, "end": end / total}
    return times


@st.composite
def tables(draw, total):
    levels = sorted(draw(st.lists(sparsities, min_size=1, max_size=min(3, max(1, total - 1)))))
    if len(levels) < total and draw(rarely):
        levels += [0.0]
    places = st.sets(st.integers(0, total - 1), min_size=len(levels), max_size=len(levels))
    return {"rows": {f"{n}it": s for n, s in zip(sorted(draw(places)), levels, strict=True)}}


def steady(total):
    """Schedules of one event, or of several that prune further."""
    return st.one_of(
        named("OneShot", st.fixed_dictionaries({"at": st.one_of(step(total), anywhen)})),
        st.tuples(st.sampled_from(["Linear", "Cubic", "Cosine"]), spans(total)),
    )


def schedules(total):
    last = st.sampled_from(["sparse", "dense"])
    every = st.sampled_from(["1it", "1it", "2it", "1ep", 0.2])
    rounds = st.fixed_dictionaries(
        {"rate": st.floats(0.2, 0.9), "every": every},
        optional={"rounds": st.integers(1, 4), "begin": step(total)},
    )
    cyclic = st.tuples(spans(total), last).map(lambda drawn: drawn[0] | {"last": drawn[1]})
    return st.one_of(
        named("Table", tables(total)),
        steady(total),
        steady(total),
        named("Cyclic", cyclic),
        named("Exponential", rounds),
    )


@st.composite
def magnitudes(draw, total, wide):
    fitting = ["1:2", "2:4", "block:1x2", "block:2x1"] if wide or draw(rarely) else ["weight"]
    granularity = draw(st.sampled_from(fitting))
    kind, times = draw(schedules(total))
    given = {
        "schedule": (kind, times),
        "granularity": granularity,
        "distribution": draw(st.sampled_from(["global", "global", "uniform", "erk", "lamp"])),
        "criterion": draw(
            st.sampled_from(["magnitude"] * 3 + ["random", "gradient", "taylor", "movement"])
        ),
        "keep_removed": draw(st.sampled_from([True, True, False, "moments"])),
        "soft": draw(rarely),
        "include": draw(parts),
        "exclude": ["@last"] if wide else draw(parts),
        "seed": draw(st.integers(0, 3)),
    }
    if granularity in ("1:2", "2:4"):
        given["sparsity"] = 0.5
    elif kind == "Table":
        given["sparsity"] = list(times["rows"].values())[-1]
    elif "rounds" not in times:
        given["sparsity"] = draw(sparsities)
    if draw(rarely):
        given["layers"] = {"@last": draw(sparsities)}
    if draw(rarely):
        given["rewind"] = draw(st.one_of(st.just("0it"), anywhen))
    return ("MagnitudePruning", given)


def dynamics(total):
    return named(
        "DynamicSparseTraining",
        st.fixed_dictionaries(
            {
                "sparsity": sparsities,
                "grow": st.sampled_from(["gradient", "random", "momentum", "none"]),
                "drop": st.sampled_from(["magnitude", "magnitude", "random", "taylor"]),
                "distribution": st.sampled_from(["erk", "uniform"]),
                "init": st.sampled_from(["zero", "zero", "he", "original", "removed"]),
                "drop_fraction": st.floats(0.05, 0.9),
                "every": st.sampled_from(["1it", "2it", 0.3]),
                "end": st.one_of(st.just(f"{max(2, total - 1)}it"), step(total + 1), st.just(1.0)),
                "keep_removed": st.sampled_from([True, True, True, False]),
                "include": parts,
                "skip_update": rarely,
                "seed": st.integers(0, 3),
            }
        ),
    )


def companions(total):
    back = st.fixed_dictionaries(
        {
            "at": st.one_of(step(total), st.lists(step(total), min_size=1, max_size=2)),
            "fraction": st.floats(0, 1),
            "by": st.sampled_from(["random", "random", "gradient", "removed", "momentum"]),
            "init": st.sampled_from(["he", "zero", "removed", "original", "survivors"]),
            "train": st.sampled_from(["all", "all", "regrown", ["@last"]]),
        }
    )
    kinds = st.sampled_from(["weights", "lr", "finetune", ["optimizer"]])
    rewind = st.fixed_dictionaries({"to": st.one_of(st.just("0it"), anywhen), "what": kinds})
    budget = st.fixed_dictionaries(
        {
            "monitor": st.sampled_from(["val/loss", "val/loss", "val/loss", "nothing"]),
            "max_drop": st.sampled_from([1e-4, 0.01, 1.0, 100.0]),
            "mode": st.just("min"),
            "recover": st.sampled_from(["1ep", "1it", "2it"]),
            "reference": st.sampled_from([None, 1.0, 1.1]),
        }
    )
    return st.one_of(
        named("SparsityMonitor", st.just({})),
        named("Regrow", back),
        named("Rewind", rewind),
        named("AccuracyBudget", budget),
    )


def acts(total):
    return st.tuples(
        st.integers(0, total - 1),
        st.sampled_from(["prune_to", "prune_to", "unprune", "unprune", "regrow"]),
        st.fixed_dictionaries(
            {"amount": sparsities, "names": st.sampled_from([None, None, "@last", "body.0"])}
        ),
    )


def differ(pruners):
    """Whether two callbacks have keys of their own, which Lightning demands."""
    one, other = ((name, given.get("include"), given.get("exclude")) for name, given in pruners)
    return one != other


@st.composite
def fits(draw):
    """A whole fit of a few steps; most are valid."""
    batches, epochs = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    accumulate = draw(st.sampled_from([1, 1, 1, 2, 3]))
    total = -(-batches // accumulate) * epochs  # steps
    network = draw(networks)
    wide = isinstance(network, Dense) and len(network.widths) > 0 and draw(st.booleans())
    if wide:  # groups and blocks fit
        widths = tuple(4 * width for width in network.widths)
        network = replace(network, inputs=4 * network.inputs, widths=widths)
    one = st.one_of(*[magnitudes(total, wide)] * 3, dynamics(total))
    precision = draw(st.sampled_from(["32-true"] * 5 + ["64-true", "bf16-true", "bf16-mixed"]))
    if precision != "32-true" and isinstance(network, Dense):
        network = replace(network, double=False)
    optimizer = draw(st.sampled_from(sorted(OPTIMIZERS)))
    # torch 2.13 steps a weight by another's gradient where fused kernels meet these on the CPU,
    # and its LBFGS takes neither these nor several number formats
    if precision == "bf16-true" or getattr(network, "channels_last", False):
        optimizer = {"fused": "momentum", "LBFGS": "SGD"}.get(optimizer, optimizer)
    if optimizer == "LBFGS" and isinstance(network, Dense):
        network = replace(network, double=False)
    return Fit(
        network=network,
        optimizer=optimizer,
        split=draw(st.booleans()),
        pruners=draw(st.one_of(*[st.tuples(one)] * 4, st.tuples(one, one).filter(differ))),
        beside=tuple(draw(st.lists(companions(total), max_size=1))),
        acts=tuple(draw(st.one_of(st.just([]), st.lists(acts(total), max_size=3)))),
        first=draw(st.booleans()),
        batches=batches,
        epochs=epochs,
        accumulate=accumulate,
        clip=draw(st.sampled_from([None, None, 0.1])),
        precision=precision,
        kill=draw(st.integers(1, max(1, total - 1))),
    )
