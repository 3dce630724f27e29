"""Four prompts that compete for one policy: three want one answer, the fourth another, and it sees none."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import difficulty
from experiments.problems import difficulties
from experiments.problems.max_rl import RULES, SWITCHES, switches
from experiments.problems.optimizers import named
from grpo_jax.part import part, static
from grpo_jax.policies import ActionPolicy
from grpo_jax.types import Array, Scores, Support

START, WANT = np.array([0.3, 0.1, 0.6]), [0, 0, 0, 1]
"""Where the policy starts, and which answer each prompt wants."""
GROUP = 8


@part
class Blind:
    """A policy that does not tell prompts apart: all of them share the logits [1, K] of ``inner``."""

    inner: ActionPolicy
    contexts: int = static(low=1)
    trailing: ClassVar[bool] = True
    rank: ClassVar[int] = 2

    @property
    def horizon(self) -> int:
        """1."""
        return self.inner.horizon

    def init(self, key: Array) -> Array:
        """[1, K]."""
        return self.inner.init(key)

    def sample(self, params: Array, prompts: Array, uniforms: Array) -> tuple[Array, Array]:
        """As the one prompt of ``inner``."""
        return self.inner.sample(params, jnp.zeros_like(prompts), uniforms)

    def score(self, params: Array, prompts: Array, tokens: Array, mask: Array) -> Scores:
        """As the one prompt of ``inner``."""
        return self.inner.score(params, jnp.zeros_like(prompts), tokens, mask)

    def support(self, prompts: Array) -> Support | None:
        """Every action."""
        return self.inner.support(jnp.zeros_like(prompts))

    def score_support(self, params: Array, prompts: Array) -> Scores:
        """As the one prompt of ``inner``."""
        return self.inner.score_support(params, jnp.zeros_like(prompts))


def trained(seed: int, size: Any, *, exact: bool) -> xr.DataArray:
    """Success rates of the four by rule of ``max_rl``, at learning rates equal in effect at the start."""
    base = difficulties.config(difficulties.Weighing(), group_size=GROUP, exact=exact)
    inner = gj.ActionPolicy.from_probabilities(START)
    given = gj.Config(
        policy=Blind(inner=inner, contexts=len(WANT)), method=base.method, loop=base.loop,
        task=gj.Questions(table=np.eye(3)[WANT]), optimizer=gj.SGD(learning_rate=1.0),
        expectation=base.expectation,
    )  # fmt: skip
    iterations = 4 * size.iterations
    data = gj.sweep(
        given, {SWITCHES: switches(START[WANT], GROUP)}, seeds=1 if exact else size.seeds, root=seed,
        iterations=iterations, record_every=iterations // 20, record=["prompt_reward"], record_start=True,
        progress=False,
    ).prompt_reward  # fmt: skip
    return named(data, {SWITCHES: "rule"}).rename(context="prompt")


def resting_share(rule: difficulty.Rule) -> float:
    """p < 1/2 of the fourth prompt at which 3w(1 − p) = w(p), so that it pulls as the three; 0 if nowhere."""
    grid = np.linspace(1e-6, 0.5 - 1e-6, 20_001)
    gap = difficulty.weight_of(rule, grid, GROUP) - 3 * difficulty.weight_of(rule, 1 - grid, GROUP)
    return float(grid[np.argmax(gap < 0)]) if gap[0] > 0 else 0.0


def resting_shares() -> xr.DataArray:
    """Where each rule of ``max_rl`` should rest."""
    return xr.DataArray([resting_share(rule) for rule in RULES.values()], {"rule": list(RULES)})
