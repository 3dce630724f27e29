"""Three questions whose answers may be cut off at a budget of T tokens, and three ways of dealing with that.

Answers are of any length: an end is drawn with one and the same chance at every step but the first. What is
cut off has no reward. Deployed with room, every answer may take ``ROOM`` tokens: beyond the budget, where no
token was ever trained, it goes on as at the start.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import truncation
from experiments.formulas.truncation import HANDLINGS, PLAIN, VOTELESS, VOTING
from experiments.problems import updates
from experiments.problems.optimizers import OPTIMIZER, adamw, named, sgd
from grpo_jax.measures import View
from grpo_jax.methods import SHIFT
from grpo_jax.parts.truncation import MaskTruncated, OfFinished
from grpo_jax.policies import TreePolicy
from grpo_jax.tasks import trees

GROUP = 8
STOP = 0.25
"""Chance of an end at every step but the first, at the start."""
ROOM = 10
LATE = 4
"""Tokens before the end from which on an answer to the slow question is fully right."""
FINISH, FIRST, SLOW = "any answer that ends is right", "the first token decides", "the full reward takes long"
QUESTIONS = (FINISH, FIRST, SLOW)
RATE, ADAM = 3.0, 0.05
MATCHED = "SGD, rate matched"
"""SGD that gives ∇E[r | K] the weight at the start that it has where nothing is masked."""

MASKED = replace(updates.PLAIN, reduction=MaskTruncated(inner=updates.PLAIN.reduction))
METHODS = {PLAIN: updates.PLAIN, VOTING: MASKED, VOTELESS: replace(MASKED, advantage=OfFinished(inner=SHIFT))}


def reward(question: str, first: int, written: int) -> float:
    """Of an answer that ends after so many tokens (the end not counted), the first of them ``first``."""
    if question == FINISH:
        return 1.0
    if first != 0:
        return 0.0
    return 1.0 if question == FIRST or written >= LATE else 0.5


def going_on(question: str, first: int, written: int) -> float:
    """Expected reward of an answer that was cut off, if it may go on to ``ROOM`` tokens."""
    ends = range(written, ROOM)
    return sum(STOP * (1 - STOP) ** (n - written) * reward(question, first, n) for n in ends)


class Budget:
    """The space of T tokens with its tables [questions, outputs]."""

    def __init__(self, tokens: int, *, stop: float = STOP) -> None:
        self.space = trees.free_length(vocab=3, horizon=tokens)
        rows, mask = self.space.support
        self.lengths = mask.sum(1)
        self.cut = (self.lengths == tokens) & (rows[:, -1] != self.space.eos)
        written = np.where(self.cut, self.lengths, self.lengths - 1).astype(int)
        first = rows[:, 0]
        ended = [[reward(q, f, n) for f, n in zip(first, written, strict=True)] for q in QUESTIONS]
        longer = [[going_on(q, f, n) for f, n in zip(first, written, strict=True)] for q in QUESTIONS]
        self.table = np.where(self.cut, 0.0, ended)
        """With the budget."""
        self.room = np.where(self.cut, longer, ended)
        """With room."""
        goes_on = np.log((1 - stop) / 2)
        self.logits = np.broadcast_to(
            [goes_on, goes_on, np.log(stop)], (len(QUESTIONS), self.space.offsets[-1], 3)
        )

    def config(self, method: gj.Method, *, exact: bool = False) -> gj.Config:
        """All questions at once, none of which sees another."""
        return gj.Config(
            policy=TreePolicy(space=self.space, logits=np.array(self.logits)),
            task=gj.SequenceTable(space=self.space, table=self.table),
            method=method,
            optimizer=gj.AdamW(learning_rate=1.0),
            loop=gj.Loop(group_size=GROUP),
            expectation=gj.Exact() if exact else gj.Counts(),
        )

    def measure(self) -> Any:
        """Of every question the share of answers that are cut off, their mean length, and both returns."""
        told = {"cut off": self.cut, "length": self.lengths, "room": self.room, "budget": self.table}
        values = np.array([np.broadcast_to(rows, self.table.shape) for rows in told.values()], float)

        @gj.measure(
            "quantity", "context", labels={"quantity": list(told), "context": QUESTIONS},
            about="means over the policy's answers",
        )  # fmt: skip
        def taken(view: View) -> jnp.ndarray:
            given = values.reshape(values.shape + (1,) * (view.probabilities.ndim - 2))
            return jnp.sum(view.probabilities * given, 2)

        return taken


def learning(handling: str, tokens: int, stop: float = STOP) -> dict[str, tuple[float, float, float]]:
    """(rate, b1, eps) of every optimizer."""
    done = 1 - (1 - stop) ** (tokens - 1)
    plain, own = (truncation.coefficients(done, 1.0, GROUP, h)[0] for h in (PLAIN, handling))
    rate, b1, eps = sgd(RATE)
    return {"SGD": (rate, b1, eps), "AdamW": adamw(ADAM), MATCHED: (rate * plain / own, b1, eps)}


def trained(seed: int, size: Any, tokens: int, *, exact: bool = False, stop: float = STOP) -> xr.Dataset:
    """Shares, lengths and returns of every handling and optimizer, with a budget of so many tokens."""
    budget, found = Budget(tokens, stop=stop), []
    for handling, method in METHODS.items():
        data = gj.sweep(
            budget.config(method, exact=exact), {OPTIMIZER: learning(handling, tokens, stop)},
            seeds=1 if exact else size.seeds, iterations=size.iterations, root=seed, record=["finite"],
            measure={"of": budget.measure()}, record_every=size.iterations // 50, record_start=True,
        )  # fmt: skip
        found.append(named(data, {OPTIMIZER: "optimizer"}).of.to_dataset("quantity"))
    return xr.concat(found, xr.Variable("handling", list(HANDLINGS)))
