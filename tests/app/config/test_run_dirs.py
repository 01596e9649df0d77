# SPDX-License-Identifier: MIT
"""Names of run folders are readable, valid, and unique for each set of overrides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from regrow.app.config.run_dirs import (
    LONGEST,
    folder_name,
    job_folder,
    override_strings,
    sweep_folder,
)

LONG = [f"some.setting.{k}={k}" for k in range(40)]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["pruning.sparsity=0.9"], "pruning.sparsity=0.9"),
        (["pruning.sparsity=9e-1"], "pruning.sparsity=0.9"),
        (["pruning.exclude=[a, b]"], "pruning.exclude=[a,b]"),
        (["b=2", "a=1"], "a=1,b=2"),
        (["recipe=digits/gmp", "seed=3", "force=true", "sweep=ladder"], ""),
        (["~callbacks.progress"], "~callbacks.progress=null"),
        (["+trainer.x=false"], "+trainer.x=False"),
        (["pruning=gmp"], "pruning=gmp"),
    ],
)
def test_job_folder_spells_its_overrides(words, name):
    assert job_folder(words) == name


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["data.root=a/../b"], ["data.root=c/../b"]),
        (["data.root=../../b"], ["data.root=b"]),
        (["data.root=a/b"], ["data.root=a.b"]),
        (["a='1,b=2'"], ["a=1", "b=2"]),
        (["a=[1,2]"], ["a=[12]"]),
        (["a=1"], ["+a=1"]),
        (["a=1"], ["~a=1"]),
        (["a='1'"], ["a=1"]),
        (LONG, [*LONG, "z=1"]),
        (LONG, [*LONG[:-1], "some.setting.39=40"]),
    ],
)
def test_different_overrides_have_different_folders(first, second):
    assert job_folder(first) != job_folder(second)


settings = st.dictionaries(
    st.sampled_from(["a.b", "c", "d.e.f"]),
    st.one_of(
        st.integers(-5, 5),
        st.floats(0.01, 0.99),
        st.lists(st.integers(0, 20), max_size=80),
        st.text("ab/.,='é ", max_size=200).map(lambda t: "'" + t.replace("'", r"\'") + "'"),
    ),
    max_size=3,
)


def words(values):
    return [f"{key}={value}" for key, value in values.items()]


@given(settings, settings)
def test_folder_names_are_unique_and_valid(first, second):
    names = [job_folder(words(values)) for values in (first, second)]
    assert (names[0] == names[1]) == (first == second)
    for name in names:
        assert len(name.encode()) < 220, "with .json and what a temporary file adds: below 255"
        assert "/" not in name
        assert name not in (".", "..")


def test_long_names_are_shortened_at_the_end():
    text = ",".join(LONG)
    assert folder_name(text).startswith(text[:LONGEST])


def test_restarted_sweep_has_the_same_name():
    words = ["seed=0,1", "recipe=digits/gmp,digits/imp", "pruning.sparsity=0.8,0.9"]
    name = sweep_folder(words)
    assert name.startswith("digits.gmp,digits.imp,sparsity=0.8,0.9,seed=0,1-")
    assert sweep_folder([*reversed(words), "force=true"]) == name
    assert sweep_folder([*words, "objectives=[val_loss]"]) != name, "another study"
    assert sweep_folder(["seed=0,1"]) != sweep_folder(["seed=0,2"])
    assert sweep_folder([]) == "defaults"


def test_unparsable_override_has_a_folder():
    """So that the job starts, and says which one it is."""
    words = OmegaConf.create({"seed": 3, "task": ["a.b=${seed}", "a.c=${nowhere}"]}).task
    assert override_strings(words[:1]) == ["a.b=3"]
    assert override_strings(words) == ["a.b=${seed}", "a.c=${nowhere}"]
    assert "$" + "{" not in job_folder(["a.c='${nowhere}'"])
