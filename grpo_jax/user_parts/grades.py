"""Problems from outside: are their grades what training takes them for, a function of prompt and answer?"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.part import outside
from grpo_jax.tasks.verifiable import Problems, Verifiable

TRIED = 16
"""The most problems of a trial."""
ENTRIES = 5
"""Answers to each."""


def check_grades(task: Any) -> None:
    """Raise for problems from outside whose prompts or grades have no meaning; each family is tried once."""
    if isinstance(task, Verifiable):
        problems = task.problems
        if outside(problems) or not type(problems).__module__.startswith("grpo_jax."):
            if not isinstance(problems, Hashable):
                raise TypeError(f"problems is {problems!r}; it is structure and must be hashable")
            with jax.ensure_compile_time_eval():
                _try(problems)


@functools.lru_cache(maxsize=32)
def _try(problems: Problems) -> None:
    name = f"{type(problems).__name__}.grade"
    prompts = _prompts(problems)
    rng = np.random.default_rng(0)
    shape = (len(prompts), ENTRIES)
    steps = [rng.choice(np.flatnonzero(row), shape) for row in problems.space.allowed]
    tokens, mask = (np.asarray(x) for x in problems.space.ended(jnp.asarray(np.stack(steps, 2))))
    grades = _graded(name, problems, prompts, tokens, mask)
    if grades.shape != shape:
        raise ValueError(
            f"{name} gives shape {grades.shape} for tokens {tokens.shape}; it must give [P, N] = {shape}"
        )
    if np.isnan(grades).any():
        raise ValueError(f"{name} gives NaN")
    if grades.min() < 0 or grades.max() > 1:
        worst = grades.min() if grades.min() < 0 else grades.max()
        raise ValueError(f"{name} gives {worst:g}; grades lie in [0, 1] (a scale, a bonus: see Verifiable)")
    again = _graded(name, problems, prompts, tokens, mask)
    if not np.array_equal(again, grades):
        raise ValueError(
            f"{name} depends on Python state: traced twice, it grades the same answers differently; training "
            "traces it once"
        )
    rubbish = np.where(mask > 0, tokens, rng.integers(0, problems.space.vocab, tokens.shape))
    if not np.array_equal(_graded(name, problems, prompts, rubbish, mask), grades):
        raise ValueError(f"{name} reads masked tokens, which may be anything")
    each = (np.repeat(prompts, ENTRIES, 0), *(x.reshape(-1, 1, x.shape[2]) for x in (tokens, mask)))
    alone = _graded(name, problems, *each).reshape(shape)
    first = _graded(name, problems, prompts[:1], tokens[:1], mask[:1])
    if not (np.array_equal(alone, grades) and np.array_equal(first, grades[:1])):
        raise ValueError(f"{name} gives an answer another grade in other company; each is graded by itself")


def _prompts(problems: Problems) -> np.ndarray:
    """int [P, Q] of some problems, the first and the last among them."""
    index = np.unique(np.linspace(0, problems.count - 1, TRIED).astype(int))
    prompts, name = np.asarray(problems.prompt(jnp.asarray(index))), type(problems).__name__
    wanted = (len(index), problems.prompt_length)
    if prompts.shape != wanted or prompts.dtype.kind not in "iu":
        raise ValueError(
            f"{name}.prompt gives {prompts.dtype.name} of shape {prompts.shape}; it must be int [P, Q] = "
            f"{wanted}"
        )
    live = prompts >= 0
    if prompts.max() >= problems.space.vocab or prompts.min() < -1:
        raise ValueError(f"{name}.prompt gives tokens outside the vocabulary, 0..{problems.space.vocab - 1}")
    if not live[:, -1].all() or (np.diff(live.astype(int), axis=1) < 0).any():
        raise ValueError(f"{name}.prompt does not pad on the left: −1 may stand before tokens only")
    return prompts


def _graded(
    name: str, problems: Problems, prompts: np.ndarray, tokens: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """What is graded under a trace of its own, as training does."""
    try:
        with jax.checking_leaks():
            return np.asarray(jax.jit(lambda *given: problems.grade(*given))(prompts, tokens, mask))
    except (
        jax.errors.ConcretizationTypeError,  # a Python if, int(), float()
        jax.errors.TracerArrayConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    ) as error:
        raise TypeError(
            f"{name} needs the values of arrays while it is traced (a Python if, int(), NumPy on an array): "
            "write it in jnp, or call Python by jax.pure_callback"
        ) from error
    except jax.errors.UnexpectedTracerError as error:
        raise TypeError(f"{name} reads a traced array of an earlier call: {_STATELESS}") from error
    except Exception as error:
        if "Leaked" not in str(error):
            raise
        raise TypeError(f"{name} keeps a traced array after it returns: {_STATELESS}") from error


_STATELESS = "it must be a function of its arguments, and store nothing"
