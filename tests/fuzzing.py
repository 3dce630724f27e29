"""How the fuzz tests draw examples, count them, and tell a refusal from a crash."""

import os
import traceback
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import grpo_jax

PACKAGE = Path(grpo_jax.__file__).parent
REFUSALS = (ValueError, TypeError, MemoryError, OSError, KeyError, AttributeError)
"""What the docstrings name; ``KeyError`` and ``AttributeError`` are names that are not there."""


class Reached(Exception):
    """The request passed the door: a program was about to be made."""


def examples(fast, slow):
    """Parametrizes a test by how many examples it draws: few unasked, many where it is slow."""
    return pytest.mark.parametrize("count", [fast, pytest.param(slow, marks=pytest.mark.slow)])


def draw(count, check, *, shrink=True, **strategies):
    """Call ``check`` with so many draws of its arguments, always the same ones."""
    quiet = {"deadline": None, "database": None, "derandomize": True, "print_blob": False}
    quiet |= {"phases": [Phase.generate, *[Phase.shrink] * shrink]}
    checks = settings(max_examples=count, suppress_health_check=list(HealthCheck), **quiet)
    checks(given(**strategies)(check))()


def outcome(call):
    """("accepted", what the call gave) or ("refused", the error), raised here for the reader's sake.

    Any other error, and one that is raised by somebody else's code, goes through: it is a crash.
    """
    try:
        return "accepted", call()
    except Reached:
        return "accepted", None
    except REFUSALS as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(os.path.realpath(frame.filename)).is_relative_to(PACKAGE.resolve())
        if not ours or not " ".join(map(str, error.args)).strip():
            raise AssertionError(f"raised in {frame.filename}:{frame.lineno}") from error
        return "refused", error


def either(*strategies):
    """One of them, each as often as any other; ``st.one_of`` goes by how many branches each has."""
    return st.sampled_from(strategies).flatmap(lambda strategy: strategy)


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0/\\"), max_size=12)
NUMBERS = st.one_of(
    st.integers(-3, 9),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-320, 1e-40, 1e39, 1e308, np.inf, -np.inf, np.nan, 2**31, 2**32, 2**63]),
)
SCALARS = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    TEXT,
    st.binary(max_size=4),
    st.complex_numbers(),
    st.sampled_from([object(), int, len, np.float16(1), np.int8(-1), np.bool_(True), np.datetime64("2020")]),
)
ANYTHING = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.lists(st.lists(NUMBERS, max_size=3), max_size=3),
    st.tuples(SCALARS, SCALARS),
    st.dictionaries(st.one_of(TEXT, st.integers(0, 3)), SCALARS, max_size=2),
    st.sampled_from([np.zeros((2, 0)), np.zeros((2, 3)), np.array([1, None]), np.array(["a"]), np.zeros(())]),
)
"""What somebody might hand to a function by mistake."""
