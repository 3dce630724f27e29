"""(tinker-cookbook 822.) Discarding answers that come too late "systematically starves slow rollouts":
"the trained data distribution is silently biased toward fast-completing problems".

github.com/thinking-machines-lab/tinker-cookbook/pull/822: `max_steps_off_policy` discarded whatever was too
old on arrival and put its problem back. Here an engine writes one token an iteration, so that an answer of n
tokens arrives n - 1 iterations old, from the weights of that time; answers older than the limit are drawn
anew (discard and requeue) or lost (the group is smaller). Two problems, sequences of at most four tokens out
of three (one ends them): an easy one with two right answers of two tokens, and a slow one with right answers
of four tokens that pay 1 and fast ones of one or two tokens that pay half. GRPO's advantage without σ,
groups of 8, SGD and AdamW, exact expectations and samples; one problem does not see the other.

Refuted if with a limit of 1 the slow problem's return does not end below the one without a limit by more
than .1, under SGD or AdamW, or if answers trained on are not shorter than those that the policy gives, by a
tenth, at the start. Qualified if the same happens where late answers are kept: then it is age, not the
selection. Checks of the instrument: a limit beyond all ages changes nothing (placebo); with one policy for
all ages the update is (1 - 1/G) ∇E[r | in time] for answers drawn anew, and Σ_n Bin(n; G, P)(1 - 1/n) ∇E[r |
in time] for lost ones, to 1e-10 against NumPy. With a limit of 0 a single answer is in time: nothing moves.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy.stats import binom

import grpo_jax as gj
from experiments.harness.numbers import Number, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.updates import PLAIN
from grpo_jax import plotting
from grpo_jax.exact import expected_gradient
from grpo_jax.exact import values as tree_values
from grpo_jax.measures import View

PRECISION = "float64"
SIZES = sizes(seeds=(8, 48, 256), iterations=(120, 360, 2000))

SPACE = gj.Sequences(vocab=3, horizon=4, eos=2)
LENGTHS = SPACE.support[1].sum(1)
OLDEST = SPACE.horizon - 1
GROUP, TRIED = 8, 3
"""In training, and where updates are enumerated."""
LIMITS = [0, 1, 2, OLDEST]
"""The last one keeps everything."""
FAST, SLOW = "fast answers are right", "only slow answers are fully right"
OPTIMIZERS = {"SGD": gj.SGD(learning_rate=1.0), "AdamW": gj.AdamW(learning_rate=0.1)}
LOSS, SHORTER, CLOSE, HALF = 0.1, 0.9, 0.02, 0.5


def rewards() -> np.ndarray:
    """[2, outputs] of the easy problem and of the slow one."""
    tokens = SPACE.support[0]
    starts = tokens[:, 0] == 0
    easy = np.where((LENGTHS == 2) & (tokens[:, 0] < 2), 1.0, 0.0)
    slow = np.where((LENGTHS == OLDEST + 1) & starts, 1.0, 0.0)
    return np.stack([easy, np.where((LENGTHS <= 2) & (starts | (LENGTHS == 1)), HALF, slow)])


def config(optimizer: Any, *, refill: bool = True, exact: bool = True) -> gj.Config:
    """Both problems, from even odds at every prefix."""
    return gj.Config(
        policy=gj.TreePolicy.uniform(SPACE, contexts=2),
        task=gj.SequenceTable(space=SPACE, table=rewards()),
        method=PLAIN,
        optimizer=optimizer,
        loop=gj.Loop(group_size=GROUP),
        expectation=gj.Exact() if exact else gj.Sampled(),
        behavior=gj.Behavior(age=gj.Age(lag=0, speed=1.0, depth=OLDEST, limit=OLDEST, refill=refill)),
    )


@gj.measure("context", about="mean length of the policy's answers, tokens")
def own_length(view: View) -> jnp.ndarray:
    """[C(, R)]."""
    lengths = jnp.asarray(LENGTHS).reshape((1, -1) + (1,) * (view.probabilities.ndim - 2))
    return jnp.sum(view.probabilities * lengths, 1)


@gj.measure("context", about="mean length of the answers that are trained on, tokens")
def trained_length(view: View) -> jnp.ndarray:
    """[C(, R)]."""
    rollout = view.batch.rollout
    tokens = jnp.sum(rollout.mask, 2)
    return jnp.sum(rollout.multiplicity * tokens, 1) / jnp.maximum(jnp.sum(rollout.multiplicity, 1), 1e-12)


@gj.measure("context", about="share of the answers drawn that are trained on")
def arriving(view: View) -> jnp.ndarray:
    """[C(, R)]."""
    return jnp.sum(view.batch.rollout.multiplicity, 1) / GROUP


def identities() -> xr.DataArray:
    """Largest gap of the library's update to the formula, by limit and what becomes of late answers."""
    table = np.random.default_rng(0).integers(-1, 2, size=(1, SPACE.size)).astype(float)
    logits = np.random.default_rng(1).normal(size=(1, SPACE.offsets[-1], SPACE.vocab))
    found = np.zeros((2, len(LIMITS)))
    for i, refill in enumerate((True, False)):
        for j, limit in enumerate(LIMITS):
            behavior = gj.Behavior(age=gj.Age(lag=0, speed=1.0, depth=OLDEST, limit=limit, refill=refill))
            given = gj.Config(
                policy=gj.TreePolicy(space=SPACE, logits=logits), method=PLAIN, behavior=behavior,
                task=gj.SequenceTable(space=SPACE, table=table), loop=gj.Loop(group_size=TRIED),
                expectation=gj.Exact(),
            )  # fmt: skip
            moved = np.asarray(expected_gradient(given, jnp.asarray(logits)))
            found[i, j] = abs(moved - by_hand(given.policy, table[0], limit, refill=refill)).max()
    return xr.DataArray(found, {"late answers": ["drawn anew", "lost"], "limit": LIMITS})


def by_hand(policy: Any, values: np.ndarray, limit: int, *, refill: bool) -> np.ndarray:
    """The factor times ∇E[r | in time], for groups of TRIED."""
    early = np.where(limit + 1 >= LENGTHS, 1.0, 0.0)

    def conditional(at: jnp.ndarray) -> jnp.ndarray:
        most = tree_values.expectation(policy, at, values * early)
        return jnp.sum(most / tree_values.expectation(policy, at, early))

    logits = jnp.asarray(policy.logits)
    share = float(jnp.sum(tree_values.expectation(policy, logits, early)))
    n = np.arange(1, TRIED + 1)
    factor = 1 - 1 / TRIED if refill else float(binom.pmf(n, TRIED, share) @ (1 - 1 / n))
    return factor * np.asarray(jax.grad(conditional)(logits))


def trained(seed: int, size: Any, *, refill: bool = True, exact: bool = False) -> xr.Dataset:
    """Returns, lengths and arrivals by problem, optimizer and limit."""
    parts = []
    for optimizer in OPTIMIZERS.values():
        data = gj.sweep(
            config(optimizer, refill=refill, exact=exact), {"limit": LIMITS},
            seeds=1 if exact else size.seeds, iterations=size.iterations, root=seed,
            record=["prompt_reward"], record_every=size.iterations // 40, record_start=True,
            measure={"own": own_length, "trained": trained_length, "arriving": arriving},
        )  # fmt: skip
        parts.append(data.assign_coords(context=[FAST, SLOW]).drop_attrs())
    both = xr.concat(parts, xr.Variable("optimizer", list(OPTIMIZERS)))
    return both.isel(seed=0, drop=True) if exact else both


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The identities, and training."""
    return {
        "identities": xr.Dataset({"gap": identities()}),
        "exact": trained(seed, size, exact=True),
        "anew": trained(seed, size),
        "lost": trained(seed, size, refill=False),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The slow problem with a limit of one iteration, against none."""
    claim.requires("update - formula", worst(data["identities"].gap, tolerance=1e-10))
    lost = {}
    for handling, name in {"anew": "drawn anew", "lost": "lost"}.items():
        for optimizer in OPTIMIZERS:
            here = data[handling].sel(optimizer=optimizer)
            ends = here.prompt_reward.isel(iteration=-1)
            slow, where = ends.sel(context=SLOW), f"{optimizer}, {name}"
            gap = mean(slow.sel(limit=1) - slow.sel(limit=OLDEST), expected=-LOSS, relation="at most")
            lost[where] = gap
            claim.refutes(f"{where}: slow problem's return, limit 1 - none", gap)
            first = here.isel(iteration=0).sel(context=SLOW, limit=1)
            ratio = mean(first.trained / first.own, expected=SHORTER, relation="at most")
            claim.refutes(f"{where}: length trained on / the policy's, limit 1, at the start", ratio)
            kept = mean(slow.sel(limit=OLDEST), expected=1 - LOSS, relation="at least")
            claim.qualifies(
                f"{where}: slow problem's return, late answers kept", kept,
                only="together with the age of what is kept",
            )  # fmt: skip
            easy = ends.sel(context=FAST)
            claim.reports(
                f"{where}: easy problem's return, limit 1 - none",
                mean(easy.sel(limit=1) - easy.sel(limit=OLDEST)),
            )
            claim.reports(f"{where}: slow problem's return, limit 1", mean(slow.sel(limit=1)))
            moved = easy.sel(limit=0) - here.prompt_reward.isel(iteration=0).sel(context=FAST, limit=0)
            claim.requires(
                f"{where}: limit 0, one answer in time: return, end - start",
                mean(moved, expected=0.0, tolerance=CLOSE),
            )
    found = float(data["exact"].prompt_reward.isel(iteration=-1).sel(context=SLOW, limit=1).max())
    full = float(data["exact"].prompt_reward.isel(iteration=-1).sel(context=SLOW, limit=OLDEST).min())
    claim.reports("exact: slow problem's return, limit 1", Number(found))
    claim.reports("exact: slow problem's return, late answers kept", Number(full))
    claim.finds(
        "The update is that of E[r | in time], so that the slow problem settles on its fast half-right "
        f"answers (return {found:.2f}); with the same late answers kept it reaches {full:.2f}. Problems "
        "do not compete here: this is within one.",
        when=list(lost.values()),
    )
    answers = data["lost"].arriving.sel(context=SLOW, limit=1).isel(iteration=0).mean()
    claim.reports(
        "lost: share of the slow problem's answers that arrive, limit 1, at the start", Number(float(answers))
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """The slow problem's return by limit."""
    figure.set_size_inches(7, 2.7)
    panels = plotting.panels(figure, 1, 2)
    for axes, optimizer in zip(panels, OPTIMIZERS, strict=True):
        returns = data["anew"].prompt_reward.sel(optimizer=optimizer, context=SLOW)
        named = returns.assign_coords(limit=[str(limit) for limit in LIMITS[:-1]] + ["none"])
        named.attrs = {"long_name": "return of the slow problem"}
        plotting.curves(axes, named, over="seed", by="limit")
        axes.legend(title="limit of age", loc="upper right", bbox_to_anchor=(1, 0.92))
        axes.axhline(HALF, color="0.6", ls=":", zorder=0)
        axes.set(xlabel="iteration", ylim=(0, 1.05))
        axes.set_title(f"{optimizer}: late answers are drawn anew\n(limits 1 and 2 coincide)")
