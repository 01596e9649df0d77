# SPDX-License-Identifier: MIT
"""The node that `+pruning=NAME` adds to any Hydra app, and the warning if nothing uses it."""

import pytest

APP = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    {body}

main()
"""
HINT = "write +pruning@callbacks.pruning=gmp"


@pytest.fixture
def app(python, tmp_path):
    """Runs a Hydra app with the given body, and returns what it prints as errors."""

    def run(body, *words):
        (tmp_path / "app.py").write_text(APP.format(body=body))
        done = python("app.py", *words)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def test_a_composed_node_that_nothing_instantiates_is_named_at_exit(app):
    printed = app("assert cfg.pruning.sparsity == 0.8", "+pruning=gmp", "pruning.sparsity=0.8")
    assert "nothing instantiated the node of +pruning=gmp" in printed
    assert HINT in printed


def test_a_node_that_the_app_instantiates_causes_no_warning(app):
    body = "hydra.utils.instantiate(cfg.callbacks.pruning)"
    assert HINT not in app(body, "+pruning@callbacks.pruning=gmp")


@pytest.mark.parametrize("words", [["+pruning=none"], ["+pruning=gmp", "--cfg", "job"], []])
def test_nothing_is_said_where_no_job_needs_the_node(app, words):
    assert "regrow" not in app("pass", *words)


def test_nothing_is_said_after_a_setting_that_does_not_exist(python, tmp_path):
    (tmp_path / "app.py").write_text(APP.format(body="pass"))
    done = python("app.py", "+pruning=gmp", "pruning.sparsty=0.9")
    assert done.returncode == 1
    assert "sparsty" in done.stderr
    assert "instantiated" not in done.stderr
