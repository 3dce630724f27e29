"""What every implementation computes: GRPO on questions with K actions, AdamW, μ inner steps, S runs.

An iteration draws G answers for each of Q questions from π_old by inverse CDF, normalises rewards within the
group, and takes μ AdamW steps on the clipped surrogate with a k3 penalty. After it, four diagnostics of every
run are recorded: exact expected reward, entropy, KL(π‖π_ref), and the share of samples held by the clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
    """K actions, Q questions, groups of G, μ inner steps."""

    actions: int
    questions: int
    group: int
    inner: int

    def __str__(self) -> str:
        return f"K{self.actions} Q{self.questions} G{self.group} μ{self.inner}"


SHAPES = tuple(
    Shape(*numbers)
    for numbers in (
        (2, 1, 8, 2), (8, 4, 8, 2), (4, 8, 16, 2), (16, 2, 8, 4),
        (64, 4, 8, 2), (1024, 1, 64, 2), (8, 16, 64, 1),
    )
)  # fmt: skip
WIDTHS = (1, 64, 1024, 5120, 16384)


@dataclasses.dataclass(frozen=True)
class Case:
    """A sweep of ``runs`` runs that differ by their draws."""

    shape: Shape
    runs: int
    iterations: int
    learning_rate: float = 0.01
    clip: float = 0.2
    kl_coef: float = 0.04
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    double: bool = False

    @property
    def table(self) -> np.ndarray:
        """[Q, K] rewards, all different."""
        return np.random.default_rng(0).random((self.shape.questions, self.shape.actions))

    @property
    def dtype(self) -> Any:
        """Of all arithmetic."""
        return np.float64 if self.double else np.float32

    @property
    def updates(self) -> int:
        """Policy-gradient steps of all runs together."""
        return self.runs * self.iterations * self.shape.inner

    def draws(self) -> np.ndarray:
        """[iterations, Q, G, S] uniforms for parity, the library's own for root 0 and seeds 0..S−1."""
        import jax
        import jax.numpy as jnp

        from grpo_jax.random import Stream, uniforms

        seeds, size = jnp.arange(self.runs, dtype=jnp.uint32), (self.shape.questions, self.shape.group, 1)
        each = jax.jit(lambda step: uniforms(jnp.uint32(0), seeds, step, Stream.TOKEN, size)[:, :, 0])
        return np.stack([np.asarray(each(jnp.uint32(i))) for i in range(self.iterations)])


class Result(NamedTuple):
    """Diagnostics [iterations, S] each."""

    expected_reward: np.ndarray
    entropy: np.ndarray
    kl: np.ndarray
    """To the reference."""
    clipped: np.ndarray
    """The share of samples that the clip holds."""

    @classmethod
    def split(cls, found: np.ndarray) -> Result:
        """Of [iterations, 4, S]: views."""
        return cls(*np.moveaxis(found, 1, 0))


class Implementation(Protocol):
    """A module: ``NAME``, ``NOTE`` (threads, vectors, what it leaves out) and ``prepare``."""

    NAME: str
    NOTE: str

    def prepare(self, case: Case, draws: np.ndarray | None) -> Callable[[], Result]:
        """Compile and warm up; the callable runs the whole sweep. ``draws`` None: its own."""


class Unavailable(RuntimeError):
    """The implementation cannot run here; the message says what is missing."""
