# SPDX-License-Identifier: MIT
"""Who may import whom, and how large a file may be."""

import ast
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
SRC = CHECKOUT / "src"
PACKAGE = SRC / "regrow"

# Data flows one way: a module imports only from what stands above it.
ORDER = (
    "errors",
    "optional",
    "_paths",
    "time",
    "sharding",
    "draws",
    "computed",
    "targets",
    "plans",
    "updates",
    "progress",
    "search",
    "exponential",
    "schedules",
    "criteria",
    "granularity",
    "distributions",
    "keys",
    "selection",
    "grouping",
    "highest",
    "masks",
    "shards",
    "damage",
    "seal",
    "changes",
    "moments",
    "uncompiled",
    "names",
    "explored",
    "method",
    "enforcement",
    "fingerprint",
    "holding",
    "initializers",
    "returning",
    "regrowth",
    "by_rows",
    "vault",
    "soft",
    "masked",
    "undo",
    "rewinding",
    "pruner",
    "learned",
    "learned_backward",
    "learned_rules",
    "learned_movement",
    "learned_control",
    "learned_weights",
    "learner",
    "learned_pruner",
    "dynamic",
    "functional",
    "scores",
    "saliency",
    "synaptic_flow",
    "distilling",
    "macs",
    "cost",
    "tensorfile",
    "channels",
    "channel_method",
    "channel_time",
    "channel_places",
    "channel_undo",
    "channel_cuts",
    "channel_pruner",
    "sensitivity_parts",
    "sensitivity_scan",
    "sensitivity_plan",
    "metrics",
    "program",
    "exporting",
    "callbacks",
    "report",
    "app",
)
# Where heavy or optional companions may be imported.
ALLOWED = {
    "lightning": ("callbacks", "app"),
    "pytorch_lightning": (),
    "hydra": ("app", "hydra_plugins"),
    "omegaconf": ("app", "hydra_plugins"),
    "sklearn": ("app",),
    "rich": ("callbacks", "report", "app"),
}
MODULES = sorted(PACKAGE.rglob("*.py"))
FILES = [f for d in ("src", "tests", "benchmarks") for f in sorted((CHECKOUT / d).rglob("*.py"))]


def imports(path):
    """Every imported module, as an absolute name; wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write the import in full"
            if node.module == "regrow":  # `from regrow import x`: x may be a module
                yield from (f"regrow.{alias.name}" for alias in node.names)
            else:
                yield node.module


def part(path):
    """The first name below the package: a module or a folder of ORDER."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def ids(path):
    return str(path.relative_to(CHECKOUT))


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_imports_point_upwards(path):
    own = part(path)
    if own == "__init__":  # the public face names everything, lazily
        return
    assert own in ORDER, f"{own} has no place yet: add it to ORDER, below what it imports"
    above = {*takewhile(lambda name: name != own, ORDER)}
    if path.parent != PACKAGE:
        above.add(own)  # files of one folder may know each other
    used = {name.split(".")[1] for name in imports(path) if name.startswith("regrow.")}
    assert used <= above, f"{path.name} imports {used - above}, which does not stand above {own}"


@pytest.mark.parametrize("path", [*MODULES, *(SRC / "hydra_plugins").glob("*.py")], ids=ids)
def test_companions_stay_where_they_belong(path):
    place = path.relative_to(SRC).parts
    for name in imports(path):
        allowed = ALLOWED.get(name.split(".")[0])
        assert allowed is None or {*allowed} & {*place}, f"{path.name} imports {name}"


def test_channels_and_masks_do_not_know_each_other():
    for path in PACKAGE.glob("channels/*.py"):
        assert "regrow.masks.masks" not in imports(path)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_files_are_small_and_licensed(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 300
    assert lines[0] == "# SPDX-License-Identifier: MIT"


def test_regrow_is_imported_without_torch():
    program = (
        "import sys, regrow\n"
        "assert 'MagnitudePruning' in dir(regrow)\n"
        "print(sorted({'torch', 'lightning', 'hydra', 'numpy'} & {*sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SRC, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_names_resolve_and_hide_no_module():
    import regrow

    for name in regrow.__all__:
        # a submodule of the same name would replace the function once it is imported
        assert not (PACKAGE / f"{name}.py").exists(), f"{name} is also a module"
        assert getattr(regrow, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'prnue'"):
        _ = regrow.prnue


def test_typed_names_are_the_lazy_ones():
    """What a type checker sees under TYPE_CHECKING is what __getattr__ gives."""
    import regrow

    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("regrow.")
        for alias in node.names
    }
    assert typed == {*regrow.__all__}


def test_plugin_folder_is_shared():
    """An __init__.py there would hide the plugins of other packages."""
    assert not (SRC / "hydra_plugins" / "__init__.py").exists()
