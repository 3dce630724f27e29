"""Right answers and their neighbours: how a step on one answer moves the log-probability of another.

One gradient step of size ε on log π(w) changes log π(r) by ε K(r, w), K(r, w) = ∇log π(r) · ∇log π(w). A
group is a sum of such steps, so that what its winners and its losers do to a right answer are two sums of K.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.problems.updates import PLAIN
from grpo_jax.measures import View

SPACE = gj.Sequences(vocab=3, horizon=4, eos=2)
TOKENS, MASK = SPACE.support
LENGTHS = MASK.sum(1)
RIGHT: dict[int, list[tuple[int, ...]]] = {
    0: [(0, 1, 0, 2)],
    1: [(1, 1, 2)],
    2: [(1, 0, 1, 1)],
    3: [(0, 1, 2), (1, 0, 1, 2)],
    4: [(1, 2), (0, 0, 1, 0)],
}
"""Context -> its right answers, some with their EOS (2), some cut at the horizon."""
CONTEXTS = len(RIGHT)
RATES = {"tree": 0.03, "MLP": 0.004, "transformer": 0.001}
"""AdamW's, so that success passes through most rates in the time given."""


def place(answer: tuple[int, ...]) -> int:
    """The answer's row of the support."""
    size = len(answer)
    hit = (size == LENGTHS) & (TOKENS[:, :size] == answer).all(1)
    return int(np.flatnonzero(hit)[0])


WINNERS = np.array([(c, place(answer)) for c, answers in RIGHT.items() for answer in answers])
"""[W, 2] context and row of every right answer."""
WINNER_LABELS = [f"{c}: {''.join(map(str, a))}" for c, answers in RIGHT.items() for a in answers]


def rewards() -> np.ndarray:
    """[C, S], 1 for a right answer."""
    table = np.zeros((CONTEXTS, len(TOKENS)))
    table[WINNERS[:, 0], WINNERS[:, 1]] = 1.0
    return table


def policies() -> dict[str, Any]:
    """A table of logits at every prefix, and two networks over the same answers."""
    return {
        "tree": gj.TreePolicy.uniform(SPACE, contexts=CONTEXTS),
        "MLP": gj.MLPPolicy(space=SPACE, contexts=CONTEXTS, width=16),
        "transformer": gj.TransformerPolicy(space=SPACE, contexts=CONTEXTS, layers=1, width=16, heads=2),
    }


def config(name: str, *, group: int, method: gj.Method = PLAIN) -> gj.Config:
    """Expectations over groups, on all prompts at once; under PLAIN (1 − 1/G)∇J: no prompt is left behind."""
    return gj.Config(
        policy=policies()[name],
        task=gj.SequenceTable(space=SPACE, table=rewards()),
        method=method,
        optimizer=gj.AdamW(learning_rate=RATES[name]),
        loop=gj.Loop(group_size=group),
        expectation=gj.Exact(),
    )


def pulls_of(policy: Any, params: Any) -> jnp.ndarray:
    """K(r, w) [W, S] of every right answer with every answer to the same prompt."""

    def one(context: jnp.ndarray, row: jnp.ndarray) -> jnp.ndarray:
        def logs(at: Any) -> jnp.ndarray:
            return jnp.sum(policy.score_support(at, context[None]).logp, 2)[0]

        own = jax.grad(lambda at: logs(at)[row])(params)
        return jax.jvp(logs, (params,), (own,))[1]

    return jax.vmap(one)(jnp.asarray(WINNERS[:, 0]), jnp.asarray(WINNERS[:, 1]))


@gj.measure("winner", "answer", labels={"winner": WINNER_LABELS}, about="K(r, w)")
def pull(view: View) -> jnp.ndarray:
    """[W, S(, R)]."""
    policy = view.config.policy
    if not view.runs:
        return pulls_of(policy, view.params)
    return jax.vmap(lambda p: pulls_of(policy, p), in_axes=-1, out_axes=-1)(view.params)


@gj.measure("context", "answer", about="probability of every answer")
def probability(view: View) -> jnp.ndarray:
    """[C, S(, R)]."""
    return view.probabilities


def agreement(row: int) -> tuple[np.ndarray, np.ndarray]:
    """For every answer: tokens that it has where the right answer has them, and how many before they part."""
    same = (MASK * MASK[row] > 0) & (TOKENS[row] == TOKENS)
    return same.sum(1), np.cumprod(same, axis=1).sum(1)


def tree_pulls(probabilities: np.ndarray, row: int) -> np.ndarray:
    """K(r, w) [S] on a table of logits at every prefix, from one context's probabilities [S], in NumPy.

    With a, b the tokens where r and w part, and π(·) the policy at that prefix,
    K = Σ_shared ‖e_t − π‖² + (‖π‖² − π_a − π_b): what comes after they part touches other parameters.
    """
    found = np.zeros(len(TOKENS))
    for other in range(len(TOKENS)):
        for t in range(SPACE.horizon):
            if not (MASK[row, t] and MASK[other, t]):
                break
            under = (TOKENS[:, :t] == TOKENS[row, :t]).all(1) & (MASK[:, t] > 0)
            mass = np.bincount(TOKENS[under, t], probabilities[under], minlength=SPACE.vocab)
            here = mass / mass.sum()
            a, b = TOKENS[row, t], TOKENS[other, t]
            found[other] += (np.eye(SPACE.vocab)[a] - here) @ (np.eye(SPACE.vocab)[b] - here)
            if a != b:
                break
    return found


def split_groups(
    probabilities: np.ndarray,
    pulls: np.ndarray,
    *,
    group: int,
    draws: int,
    by_length: bool,
    seed: int,
    rates: tuple[float, float] = (0.0, 1.0),
) -> xr.Dataset:
    """What winners and losers of sampled groups do to each right answer among them, at learning rate 1.

    GRPO's advantages (r − r̄)/σ, in groups with right and wrong answers alone; Σ_i A_i K(r, o_i) c_i / G with
    c_i = 1/|o_i| (GRPO) or 1.

    Args:
      probabilities: [C, S].
      pulls: [W, S].
      group: G.
      draws: groups drawn for each context.
      by_length: whether each answer is divided by its length.
      seed: of the draws.
      rates: prompts with a success rate outside are left out.

    Returns:
      `gain` (winners' part), `loss` (losers' part), `success` (the prompt's rate) and `rights` (its number of
      right answers), by `case`.
    """
    rng = np.random.default_rng(seed)
    table, weight = rewards(), (1 / LENGTHS if by_length else np.ones(len(LENGTHS)))
    gains, losses, chances, rights = ([np.zeros(0)] for _ in range(4))
    for c in range(CONTEXTS):
        own = np.clip(probabilities[c], 0, None)
        if not rates[0] <= own @ table[c] <= rates[1]:
            continue
        counts = rng.multinomial(group, own / own.sum(), size=draws)
        mean = counts @ table[c] / group
        mixed = (mean > 0) & (mean < 1)
        counts, mean = counts[mixed], mean[mixed, None]
        advantage = (table[c] - mean) / np.sqrt(mean * (1 - mean))
        step = counts * advantage * weight / group
        for w in np.flatnonzero(WINNERS[:, 0] == c):
            among = counts[:, WINNERS[w, 1]] > 0
            gains.append((np.maximum(step, 0) @ pulls[w])[among])
            losses.append((np.minimum(step, 0) @ pulls[w])[among])
            chances.append(np.full(among.sum(), own @ table[c]))
            rights.append(np.full(among.sum(), table[c].sum()))
    cases = {"gain": gains, "loss": losses, "success": chances, "rights": rights}
    return xr.Dataset({name: ("case", np.concatenate(parts)) for name, parts in cases.items()})
