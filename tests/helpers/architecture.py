# SPDX-License-Identifier: MIT
"""Rules of the source tree, each a function that lists its violations."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from torch import nn

# In the order of imports: a package imports only from those before it.
PACKAGES = (
    "utils",
    "distillation",
    "distributed",
    "io",
    "schedules",
    "masks",
    "criteria",
    "pruning",
    "profiling",
    "runtime",
    "calibration",
    "learned",
    "channels.graph",
    "channels.cut",
    "channels",
    "sensitivity_analysis",
    "callbacks.core",
    "callbacks.support",
    "callbacks",
    "report",
    "data",
    "app.models",
    "app.config",
    "app.data",
    "app.training",
    "app.experiment",
    "app.launch",
    "app.cli",
)
# Packages that may import heavy or optional dependencies.
COMPANIONS = {
    "lightning": ("lightning_classes.py",),
    "pytorch_lightning": (),
    "regrow.utils.lightning_classes": ("callbacks", "data", "app"),
    "hydra": ("app", "hydra_plugins"),
    "omegaconf": ("app", "hydra_plugins"),
    "sklearn": ("app",),
    "rich": ("progress_bar.py", "callbacks", "sensitivity_analysis", "report", "app"),
}
ROLES = {"__init__", "__main__", "base", "config", "pruner"}  # the same role in each package
MAX_FILE, MAX_FUNCTION, MAX_ANCESTORS, MAX_MODULES = 500, 60, 2, 15
SHORT_FILES = {  # below 40 lines, each for a reason
    "utils/logging.py": "the one place where regrow speaks to its user",
    "utils/imports.py": "optional dependencies",
    "utils/paths.py": "where conf/ and recipes/ are",
    "utils/progress_bar.py": "imports rich, and on a terminal alone",
    "callbacks/sparse_early_stopping.py": "one public callback a file",
    "app/data/fashion_mnist.py": "one data set a file",
    "sensitivity_analysis/scan_options.py": "read by the command line, which must not import torch",
}


class Tree:
    """The modules of the package `regrow` below a folder.

    Args:
        root: The folder that holds `regrow/`.
        parsed: Of another tree, which has most files in common: text -> module.
    """

    def __init__(self, root: Path, parsed: Mapping[str, ast.Module] | None = None) -> None:
        self.parsed = dict(parsed or {})
        self.package = root / "regrow"
        self.files = sorted(self.package.rglob("*.py"))

    @cached_property
    def trees(self) -> Mapping[Path, ast.Module]:
        texts = {path: path.read_text() for path in self.files}
        self.parsed |= {text: ast.parse(text) for text in {*texts.values()} - {*self.parsed}}
        return {path: self.parsed[text] for path, text in texts.items()}

    @cached_property
    def modules(self) -> Mapping[str, Path]:
        """Dotted names, `regrow.masks.topk` and `regrow.masks` for an `__init__`."""
        return {self.name(path): path for path in self.files}

    def name(self, path: Path) -> str:
        parts = path.relative_to(self.package.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def place(self, path: Path) -> str:
        return str(path.relative_to(self.package))

    def imports(self, path: Path) -> Iterator[str]:
        """Every imported module, wherever the import stands; `from package import module` too."""
        for node in ast.walk(self.trees[path]):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                for alias in node.names:
                    whole = f"{module}.{alias.name}"
                    yield whole if whole in self.modules else module

    @cached_property
    def edges(self) -> Mapping[str, set[str]]:
        """Imports between our modules; the lazy public face `regrow` itself is left out."""
        edges = {}
        for name, path in self.modules.items():
            used = {found for found in self.imports(path) if found in self.modules}
            edges[name] = used - {name, "regrow"}
        return {name: used for name, used in edges.items() if name != "regrow"}

    @cached_property
    def classes(self) -> Mapping[str, list[str]]:
        """The base classes of each class, by their last names."""
        return {
            node.name: [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }

    def ancestors(self, name: str) -> set[str]:
        found: set[str] = set()
        for base in self.classes.get(name, []):
            if base in self.classes and base != name:
                found |= {base} | self.ancestors(base)
        return found


def package_of(module: str) -> str:
    """The package of `PACKAGES` that a module lies in."""
    own = module.removeprefix("regrow.")
    fitting = [name for name in PACKAGES if own == name or own.startswith(f"{name}.")]
    return max(fitting, key=len, default="")


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (strongly connected components, Kosaraju)."""

    def visit(node: str, graph: Mapping[str, set[str]], seen: set[str]) -> list[str]:
        order, stack = [], [(node, iter(sorted(graph.get(node, ()))))]
        seen.add(node)
        while stack:
            last, following = stack[-1]
            step = next((n for n in following if n not in seen), None)
            if step is None:
                order.append(stack.pop()[0])
            else:
                seen.add(step)
                stack.append((step, iter(sorted(graph.get(step, ())))))
            del last
        return order

    finished: list[str] = []
    seen: set[str] = set()
    for node in sorted(edges):
        if node not in seen:
            finished += visit(node, edges, seen)
    reversed_edges: dict[str, set[str]] = {node: set() for node in edges}
    for node, used in edges.items():
        for other in used:
            reversed_edges.setdefault(other, set()).add(node)
    seen.clear()
    groups = [visit(n, reversed_edges, seen) for n in reversed(finished) if n not in seen]
    return [sorted(group) for group in groups if len(group) > 1]


def module_cycles(tree: Tree) -> list[str]:
    """Modules that import each other, imports under TYPE_CHECKING included."""
    return [" <-> ".join(group) for group in cycles(tree.edges)]


def imports_against_order(tree: Tree) -> list[str]:
    """Imports from a package that comes later in `PACKAGES`, and modules without a package."""
    found = []
    for name, used in tree.edges.items():
        own = package_of(name)
        if not own:
            if name not in ("regrow.app", "regrow.__main__"):
                found.append(f"{name} lies in no package of PACKAGES")
            continue
        for other in sorted(used):
            theirs = package_of(other)
            if theirs and PACKAGES.index(theirs) > PACKAGES.index(own):
                found.append(f"{name} imports {other}, which comes later")
    return found


def misplaced_companions(tree: Tree) -> list[str]:
    """Imports of lightning, hydra and others outside the packages that may need them."""
    return [
        f"{tree.place(path)} imports {name}"
        for path in tree.files
        for name in tree.imports(path)
        if (allowed := COMPANIONS.get(name, COMPANIONS.get(name.split(".")[0]))) is not None
        and not {*allowed} & {*path.parts}
    ]


def long_files(tree: Tree) -> list[str]:
    counts = {path: len(path.read_text().splitlines()) for path in tree.files}
    return [f"{tree.place(p)}: {count} lines" for p, count in counts.items() if count > MAX_FILE]


def short_files(tree: Tree) -> list[str]:
    """Files below 40 lines without a reason in `SHORT_FILES`."""
    return [
        tree.place(path)
        for path in tree.files
        if path.stem not in ROLES
        and len(path.read_text().splitlines()) < 40
        and tree.place(path) not in SHORT_FILES
    ]


def long_functions(tree: Tree) -> list[str]:
    return [
        f"{tree.place(path)}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path, module in tree.trees.items()
        for node in ast.walk(module)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION
    ]


def untyped_states(tree: Tree) -> list[str]:
    """States with several keys that no TypedDict declares: a reader would have to guess them."""
    return [
        f"{tree.place(path)}: state_dict in line {node.lineno} returns an undeclared dict"
        for path, module in tree.trees.items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and node.name == "state_dict"
        if not _declares(node.returns) and any(map(_is_undeclared, ast.walk(node)))
    ]


def _is_undeclared(node: ast.AST) -> bool:
    """Whether a statement makes a dict of two keys or more without saying of which type."""
    if not isinstance(node, (ast.Return, ast.Assign, ast.AnnAssign)) or node.value is None:
        return False
    if isinstance(node, ast.AnnAssign) and _declares(node.annotation):
        return False
    return any(
        isinstance(part, ast.Dict) and sum(isinstance(key, ast.Constant) for key in part.keys) > 1
        for part in ast.walk(node.value)
    )


def _declares(annotation: ast.expr | None) -> bool:
    return annotation is not None and not ast.unparse(annotation).startswith(("dict", "Mapping"))


def deep_classes(tree: Tree) -> list[str]:
    """Classes with more than two of our classes above them."""
    found = {name: tree.ancestors(name) for name in tree.classes}
    return [
        f"{name} has {', '.join(sorted(above))} above it"
        for name, above in found.items()
        if len(above) > MAX_ANCESTORS
    ]


def _private_names(module: ast.Module) -> set[str]:
    """Private attributes and methods that the classes of a module define."""
    found = set()
    for cls in ast.walk(module):
        if not isinstance(cls, ast.ClassDef):
            continue
        for node in ast.walk(cls):
            if isinstance(node, ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def private_accesses(tree: Tree) -> list[str]:
    """Uses of a private attribute, or imports of a private name, of another module of ours."""
    own = {path: _private_names(module) for path, module in tree.trees.items()}
    everybodys = {name for names in own.values() for name in names} - {*vars(nn.Module())}
    found = []
    for path, module in tree.trees.items():
        foreign = everybodys - own[path]
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and node.attr in foreign:
                if not isinstance(node.value, ast.Name) or node.value.id not in ("self", "cls"):
                    found.append(f"{tree.place(path)}:{node.lineno}: {ast.unparse(node)}")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("regrow"):
                names = [alias.name for alias in node.names if alias.name.startswith("_")]
                found += [f"{tree.place(path)}:{node.lineno}: imports {name}" for name in names]
    return found


def repeated_names(tree: Tree) -> list[str]:
    """File names that occur twice, and names that differ by an ending alone."""
    stems = [path.stem for path in tree.files if path.stem not in ROLES]
    found = [f"{name} occurs {n} times" for name, n in Counter(stems).items() if n > 1]
    roots: dict[str, set[str]] = {}
    for stem in stems:
        roots.setdefault(re.sub(r"(s|es|ing|ed|er|e|r)$", "", stem), set()).add(stem)
    return found + [f"{', '.join(sorted(same))}" for same in roots.values() if len(same) > 1]


def flat_modules(tree: Tree) -> list[str]:
    """Modules directly in `regrow/` but `distillation` and `__main__`."""
    allowed = {"__init__", "__main__", "distillation"}
    return [
        path.name for path in tree.files if path.parent == tree.package and path.stem not in allowed
    ]


def crowded_packages(tree: Tree) -> list[str]:
    """Packages of more than fifteen modules, or of fewer than five."""
    counts = Counter(path.parent for path in tree.files if path.stem != "__init__")
    return [
        f"{tree.place(folder)}: {count} modules"
        for folder, count in counts.items()
        if folder != tree.package and not 5 <= count <= MAX_MODULES
    ]
