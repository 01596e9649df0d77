# SPDX-License-Identifier: MIT
"""README, guide and results: programs run, and the files that commands name exist."""

import ast
import re
from pathlib import Path

import pytest

from regrow.app.config.recipes import recipe_files

CHECKOUT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/guide.md", "docs/results.md")
TEXT = "\n".join((CHECKOUT / name).read_text() for name in DOCUMENTS)
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
COMMANDS = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.S))


@pytest.mark.parametrize(
    "program",
    [p for p in PROGRAMS if p.startswith(("from", "import"))],
    ids=["trainer", "plain", "channels"],
)
def test_example_programs_run(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(program, {"__name__": "readme"})
    assert "regrow" in program


def test_settings_in_other_snippets_can_be_constructed():
    """Statements that make one object of the suite."""
    import regrow

    names = {name: getattr(regrow, name) for name in regrow.__all__}
    made = 0
    for statement in (s for program in PROGRAMS for s in ast.parse(program).body):
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) in names:
            assert eval(ast.unparse(call), dict(names)) is not None
            made += 1
    assert made >= 4


def test_mentioned_recipes_and_benchmarks_exist(checkout):
    recipes = re.findall(r"recipe=([\w/,]+)", COMMANDS)
    assert recipes
    for name in {name for found in recipes for name in found.split(",")}:
        assert name in recipe_files()
    for path in re.findall(r"python (benchmarks/\w+\.py)", TEXT):
        assert (checkout / path).is_file()
    targets = (checkout / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", COMMANDS, re.M):
        assert f"\n{target}:" in targets
