# SPDX-License-Identifier: MIT
"""The rules of the source tree hold, and a planted violation of each rule is found."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import architecture
import pytest
from architecture import Tree

CHECKOUT = Path(__file__).resolve().parents[1]
SRC = CHECKOUT / "src"
PACKAGE = SRC / "regrow"
RULES = [
    architecture.module_cycles,
    architecture.imports_against_order,
    architecture.misplaced_companions,
    architecture.long_files,
    architecture.short_files,
    architecture.long_functions,
    architecture.untyped_states,
    architecture.deep_classes,
    architecture.private_accesses,
    architecture.repeated_names,
    architecture.flat_modules,
    architecture.crowded_packages,
]


@pytest.fixture(scope="module")
def tree():
    return Tree(SRC)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule, tree):
    assert rule(tree) == []


LONG = "def long():\n" + "    x = 1\n" * 61
GUESSED = "class A:\n    def state_dict(self):\n        return {'a': 1, 'b': 2}\n"
DEEP = "class A: ...\nclass B(A): ...\nclass C(B): ...\nclass D(C): ...\n"
OWNER = "class Owner:\n    def __init__(self):\n        self._hidden = 1\n"
# A rule, and files to add to the tree that break it.
BREACHES = [
    (
        architecture.module_cycles,
        {
            "masks/planted_first.py": "from regrow.masks import planted_second\n",
            "masks/planted_second.py": "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from regrow.masks.planted_first import x\n",
        },
    ),
    (
        architecture.imports_against_order,
        {"utils/planted.py": "def late():\n    from regrow.masks.masks import Masks\n"},
    ),
    (architecture.misplaced_companions, {"callbacks/planted.py": "import lightning.pytorch\n"}),
    (
        architecture.misplaced_companions,
        {"masks/planted.py": "from regrow.utils.lightning_classes import pl\n"},
    ),
    (architecture.long_files, {"masks/planted.py": "x = 1\n" * 501}),
    (architecture.short_files, {"masks/planted.py": "x = 1\n"}),
    (architecture.long_functions, {"masks/planted.py": LONG}),
    (architecture.untyped_states, {"masks/planted.py": GUESSED}),
    (architecture.deep_classes, {"masks/planted.py": DEEP}),
    (
        architecture.private_accesses,
        {
            "masks/planted_owner.py": OWNER,
            "pruning/planted.py": "def peek(owner):\n    return owner._hidden\n",
        },
    ),
    (
        architecture.private_accesses,
        {"pruning/planted.py": "from regrow.masks.topk import _rows\n"},
    ),
    (architecture.repeated_names, {"utils/topk.py": "x = 1\n"}),
    (architecture.repeated_names, {"utils/targeting.py": "x = 1\n"}),
    (architecture.flat_modules, {"planted.py": "x = 1\n"}),
    (architecture.crowded_packages, {"planted/lonely.py": "x = 1\n"}),
]


@pytest.mark.parametrize(
    ("rule", "files"), BREACHES, ids=[f"{rule.__name__}-{len(files)}" for rule, files in BREACHES]
)
def test_planted_violation_is_found(rule, files, tree, tmp_path):
    copy = tmp_path / "src"
    shutil.copytree(PACKAGE, copy / "regrow", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files.items():
        path = copy / "regrow" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    known = {*rule(tree)}
    new = {*rule(Tree(copy, tree.parsed))} - known
    assert new, "the rule does not see the breach"


def test_every_file_names_its_license():
    for folder in ("src", "tests", "benchmarks", "examples"):
        for path in (CHECKOUT / folder).rglob("*.py"):
            assert path.read_text().startswith("# SPDX-License-Identifier: MIT\n"), path


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
        assert not (PACKAGE / name).is_dir(), f"{name} is also a package"
        assert getattr(regrow, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'prnue'"):
        _ = regrow.prnue


def test_typed_names_are_the_lazy_ones():
    """What a type checker sees under TYPE_CHECKING is what __getattr__ returns."""
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
