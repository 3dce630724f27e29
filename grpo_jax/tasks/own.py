"""A task of one's own: a table of prompts, and one function that grades answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from grpo_jax.sequences import Sequences
from grpo_jax.types import Array

Grade = Callable[[Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """Rows of tokens as structure: hashable, equal where their contents are."""

    tokens: np.ndarray = dataclasses.field(compare=False)
    """int [count, length]."""
    digest: str = ""

    def __post_init__(self) -> None:
        tokens = self.tokens.astype(np.int32)
        tokens.flags.writeable = False
        digest = hashlib.sha256(repr(tokens.shape).encode() + tokens.tobytes()).hexdigest()
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "digest", digest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnProblems:
    """Problems by number out of a table; made by ``from_function``."""

    table: TokenTable
    function: Grade = dataclasses.field(metadata={"static": True})
    space: Sequences
    words: tuple[str, ...]
    solutions: TokenTable | None = None

    @property
    def count(self) -> int:
        """Problems."""
        return len(self.table.tokens)

    @property
    def prompt_length(self) -> int:
        """Q."""
        return self.table.tokens.shape[1]

    def prompt(self, index: Array) -> Array:
        """int [P, Q]."""
        return jnp.asarray(self.table.tokens)[index]

    def grade(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N], what the function says."""
        return jnp.asarray(self.function(prompts, tokens, mask), float)

    def solution(self, index: Array) -> tuple[Array, Array]:
        """Tokens and mask [P, T]; ValueError where no solutions were given."""
        if self.solutions is None:
            raise ValueError("these problems came without solutions; from_function takes them")
        tokens, mask = self.space.ended(jnp.asarray(self.solutions.tokens)[index][:, None])
        return tokens[:, 0], mask[:, 0]


def from_function(
    prompts: Any,
    grade: Grade,
    space: Sequences,
    *,
    words: Sequence[str] | None = None,
    solutions: Any = None,
) -> OwnProblems:
    """Problems from a table of prompts and a function of the answers.

    Args:
      prompts: int [count, Q] tokens, padded on the left with −1; no prompt twice, or a held-out problem
        might be trained on.
      grade: (prompts [P, Q], tokens [P, N, T], mask [P, N, T]) -> [P, N] in [0, 1], 1 for a right answer,
        each from its own prompt and answer; it reads no masked token. Written in ``jnp`` and traced once, so
        that it keeps nothing between calls. A verifier in Python goes into ``jax.pure_callback``.
      space: the answers.
      words: what each token stands for; its number by default.
      solutions: int [count, T] right answers, whatever after EOS; only a warm start needs them.

    Raises:
      TypeError, ValueError: for tables that do not fit; a grade is tried where a configuration is validated.

    >>> import jax.numpy as jnp
    >>> from grpo_jax.tasks import Verifiable
    >>> echo = from_function(
    ...     [[0], [1]],
    ...     lambda prompts, tokens, mask: (tokens[:, :, 0] == prompts) * 1.0,
    ...     Sequences(vocab=3, horizon=2, eos=2),
    ... )
    >>> Verifiable(problems=echo).say(echo.prompt(jnp.arange(2)), *echo.space.ended(jnp.ones((2, 1, 2), int)))
    [['011  0'], ['111  1']]
    """
    table = _tokens("prompts", prompts, space.vocab, low=-1)
    if not table.shape[1]:
        raise ValueError("prompts are empty; each needs a token")
    live = table >= 0
    if not live[:, -1].all() or (np.diff(live.astype(int), axis=1) < 0).any():
        bad = int(np.argmax(~live[:, -1] | (np.diff(live.astype(int), axis=1) < 0).any(1)))
        raise ValueError(f"prompt {bad} is not padded on the left: −1 may stand before tokens only")
    if len(np.unique(table, axis=0)) < len(table):
        raise ValueError("a prompt stands in the table twice: a held-out problem might be trained on")
    if not callable(grade):
        raise TypeError(f"grade is {grade!r}; it must be a function (prompts, tokens, mask) -> [P, N]")
    if solutions is not None:
        solutions = _tokens("solutions", solutions, space.vocab, low=0)
        if solutions.shape != (len(table), space.horizon):
            raise ValueError(
                f"solutions have shape {solutions.shape}; they must be [count, T] = "
                f"({len(table)}, {space.horizon})"
            )
    return OwnProblems(
        table=TokenTable(table),
        function=grade,
        space=space,
        words=tuple(map(str, range(space.vocab) if words is None else words)),
        solutions=None if solutions is None else TokenTable(solutions),
    )


def _tokens(name: str, table: Any, vocab: int, *, low: int) -> np.ndarray:
    """int [count, length], each entry in [low, vocab)."""
    try:
        array = np.asarray(table)
    except ValueError as error:
        raise ValueError(f"{name} are ragged; they must be [count, length], padded") from error
    if array.ndim != 2 or not len(array):
        raise ValueError(f"{name} have shape {array.shape}; they must be [count, length]")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} hold {array.dtype.name}; tokens are integers")
    wrong = array[(array < low) | (array >= vocab)]
    if len(wrong):
        raise ValueError(f"{name} hold token {int(wrong[0])}; the vocabulary is 0..{vocab - 1}")
    return array
