"""(arXiv:2601.05242, GDPO, abstract.) "Directly applying GRPO to normalize distinct rollout reward
combinations causes them to collapse into identical advantage values, reducing the resolution of the training
signal and resulting in suboptimal convergence."

The abstract was read, not the paper. GRPO sums rewards and normalises, GDPO normalises each within its group
and sums (trl `multi_objective_aggregation`, verl `adv_estimator=gdpo`); its whitening over the batch, which
only changes the rate, is left out. Groups of 8; questions with five answers that earn two rewards: coins,
graded, a hard and an easy one, graded with one a tenth as large. SGD and AdamW, exact and sampled.

Refuted if at G of 8 or 16 GRPO gives more than half as many different advantage vectors as GDPO to all groups
of pairs of binary rewards (alone a row of its own; told at 4); or if for any kind of question GDPO's total
reward, mean over training, is not above GRPO's by .01 of the best one's, at equal rates, or with SGD's rate
scaled to equal advantages (root mean square at the start). What both have reached in the end, where the best
answer may be a ceiling to both, is told. SkyRL 2104 (a review): a filter on the sum drops "groups whose
components differ but share the same total — the case GDPO is designed to keep"; refuted if with three rewards
no such group has a GDPO advantage beyond .01, qualified if with two none has. Ours: normalised apart a
reward's size does not count: of two answers with rewards (1, 0) and (0, .1) GDPO prefers neither (exactly, to
1e-9: an identity, which can fall only if the code is wrong), GRPO takes the first. Checks of the instrument,
by enumeration in NumPy of unequal questions to 1e-10: GDPO's update is Σ_m w_G(p_m) ∇p_m for binary rewards,
w_G that of E2, so that it ascends Σ_m 2 arcsin √p_m in large groups; library - NumPy advantages; where both
rewards are the same (placebo), GDPO's exact update is twice GRPO's.
"""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy.stats import binom

import grpo_jax as gj
from experiments.harness.numbers import Number, each, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import pairs_of_rewards as pairs
from experiments.problems.lengths import named as renamed
from experiments.problems.pairs_of_rewards import GDPO, KINDS, PLAIN, SUM
from grpo_jax import plotting
from grpo_jax.exact import expected_gradient
from grpo_jax.surrogate import advantages

PRECISION = "float64"
SIZES = sizes(listed=(8, 12, 64), drawn=(48, 128, 512), iterations=(300, 300, 2000), seeds=(2, 4, 16))

GROUP, TRIED = 8, 3
COUNTED, JUDGED = [4, 8, 16], [8, 16]
OPTIMIZER = ("optimizer.learning_rate", "optimizer.b1", "optimizer.eps")
GAP, HALF, LOUD, SURE = 0.01, 0.5, 0.01, 0.95


def counted() -> xr.DataArray:
    """How many advantage vectors all groups of pairs of binary rewards have, by method and group size."""
    found = np.zeros((len(pairs.INNER), len(COUNTED)))
    for j, size in enumerate(COUNTED):
        told: dict[str, set[Any]] = {name: set() for name in pairs.INNER}
        for rows in pairs.groups(size):
            for name, values in pairs.by_hand(rows).items():
                told[name].add(tuple(np.sort(values.round(9) + 0.0)))
        found[:, j] = [len(told[name]) for name in pairs.INNER]
    return xr.DataArray(found, {"algorithm": list(pairs.INNER), "group": COUNTED})


def silent(rewards: int) -> float:
    """Greatest GDPO advantage in groups of eight whose sums tie."""
    tied = [rows for rows in pairs.groups(4 if rewards > 2 else GROUP, rewards) if np.ptp(rows.sum(1)) == 0]
    return max(abs(pairs.by_hand(rows)[GDPO]).max() for rows in tied)


def identities() -> xr.Dataset:
    """Gaps of the library's advantages to NumPy's, and of GDPO's update to Σ_m w_G(p_m) ∇p_m."""
    apart = []
    for rows in pairs.groups(4)[::7]:
        at = np.arange(4)[None]
        method = {name: pairs.method(name, rows.T[:, None]) for name in pairs.INNER}
        rollout = gj.Rollout(
            prompts=jnp.arange(1), tokens=jnp.asarray(at[:, :, None]), mask=jnp.ones((1, 4, 1)),
            rewards=jnp.asarray(rows.sum(1)[None, :, None]), multiplicity=jnp.ones((1, 4)),
            sampling_logp=jnp.zeros((1, 4, 1)), old_logp=jnp.zeros((1, 4, 1)), ref_logp=jnp.zeros((1, 4, 1)),
        )  # fmt: skip
        for name, given in method.items():
            library = np.asarray(advantages(given, rollout))[0, :, 0]
            apart.append(abs(library - pairs.by_hand(rows)[name]).max())
    tables, logits = pairs.questions("coins", 3, 1)
    moved = expected_gradient(pairs.config(GDPO, tables, logits, group=TRIED), jnp.asarray(logits))
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    hand = np.zeros_like(logits)
    for c, m in itertools.product(range(len(logits)), range(2)):
        p = float(odds[c] @ tables[m, c])
        k = np.arange(TRIED + 1)
        weight = binom.pmf(k, TRIED, p) @ np.sqrt(k * (TRIED - k)) / (TRIED * p * (1 - p))
        hand[c] += weight * odds[c] * (tables[m, c] - p) / len(logits)
    same = np.stack([tables[0], tables[0]])
    both = {
        name: np.asarray(
            expected_gradient(pairs.config(name, same, logits, group=TRIED), jnp.asarray(logits))
        )
        for name in (GDPO, SUM)
    }
    gaps = {"update": moved - hand, "placebo": both[GDPO] - 2 * both[SUM]}
    return xr.Dataset({"advantage": max(apart)} | {k: abs(np.asarray(v)).max() for k, v in gaps.items()})


def scale(tables: np.ndarray, logits: np.ndarray, seed: int) -> float:
    """Root mean square of GRPO's advantages over GDPO's, at the start, from 200 groups a question."""
    rng = np.random.default_rng(seed)
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    square = dict.fromkeys(pairs.INNER, 0.0)
    for c in range(len(logits)):
        for _ in range(200):
            rows = tables[:, c, rng.choice(odds.shape[1], GROUP, p=odds[c])].T
            for name, values in pairs.by_hand(rows).items():
                square[name] += float((values**2).sum())
    return float(np.sqrt(square[SUM] / square[GDPO]))


def trained(kind: str, seed: int, size: Any, *, exact: bool) -> xr.DataArray:
    """Total reward as a share of the best answer's, by method, optimizer, iteration and question."""
    count = size.listed if exact else size.drawn
    tables, logits = pairs.questions(kind, count, seed)
    equal, found = scale(tables, logits, seed), []
    for name in pairs.INNER:
        # SGD is AdamW without momentum whose eps and learning rate are great.
        optimizers = {
            "SGD": (1e9, 0.0, 1e9),
            "SGD, equal advantages": (1e9 * (equal if name == GDPO else 1.0), 0.0, 1e9),
            "AdamW": (0.05, 0.9, 1e-8),
        }
        data = gj.sweep(
            pairs.config(name, tables, logits, group=GROUP, exact=exact), {OPTIMIZER: optimizers},
            seeds=1 if exact else size.seeds, iterations=size.iterations, root=seed,
            record=["prompt_reward"], record_every=size.iterations // 20,
        )  # fmt: skip
        found.append(renamed(data, {OPTIMIZER: "optimizer"}).prompt_reward)
    best = xr.DataArray(tables.sum(0).max(1), {"context": np.arange(count)})
    return xr.concat(found, xr.Variable("algorithm", list(pairs.INNER))).mean("seed") / best


def sizes_apart() -> xr.DataArray:
    """π of the first of two answers with rewards (1, 0) and (0, .1) after exact training, from .3."""
    tables, logits = np.array([[[1.0, 0.0]], [[0.0, 0.1]]]), np.log([[0.3, 0.7]])
    ends = []
    for name in pairs.INNER:
        config = pairs.config(name, tables, logits, group=GROUP, optimizer=gj.SGD(learning_rate=1.0))
        data = gj.sweep(config, iterations=400, record_every=400, record=["probabilities"])
        ends.append(float(data.probabilities.isel(iteration=-1, output=0).squeeze()))
    return xr.DataArray(ends, {"algorithm": list(pairs.INNER)})


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """What is counted, the identities, and training on every kind of question."""
    found = {"counted": xr.Dataset({"vectors": counted(), "two": silent(2), "three": silent(3)})}
    found["identities"], found["sizes"] = identities(), xr.Dataset({"first": sizes_apart()})
    for way, exact in {"exact": True, "sampled": False}.items():
        kinds = [trained(kind, seed, size, exact=exact) for kind in KINDS]
        found[way] = xr.Dataset({"kept": xr.concat(kinds, xr.Variable("kind", list(KINDS)))})
    return found


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Resolution, convergence, the filter, and sizes."""
    claim.requires("advantages: library - NumPy", worst(data["identities"]["advantage"], tolerance=1e-10))
    claim.requires("GDPO's update - Σ w_G(p_m) ∇p_m", worst(data["identities"]["update"], tolerance=1e-10))
    claim.requires(
        "twice the same reward: GDPO - 2 GRPO", worst(data["identities"]["placebo"], tolerance=1e-10)
    )
    vectors = data["counted"].vectors
    share = vectors.sel(algorithm=SUM, drop=True) / vectors.sel(algorithm=GDPO, drop=True)
    shares = {
        f"groups of {size}": Number(float(share.sel(group=size)), HALF, relation="at most") for size in JUDGED
    }
    claim.refutes("different advantage vectors, GRPO / GDPO", shares)
    few = Number(float(share.sel(group=COUNTED[0])))
    claim.reports(f"different advantage vectors, GRPO / GDPO, groups of {COUNTED[0]}", few)
    claim.reports(
        "the same without σ / GDPO, groups of 8",
        Number(float(vectors.sel(algorithm=PLAIN, group=8) / vectors.sel(algorithm=GDPO, group=8))),
    )
    for way in ("exact", "sampled"):
        kept = data[way].kept.mean("iteration")
        gap = kept.sel(algorithm=GDPO, drop=True) - kept.sel(algorithm=SUM, drop=True)
        for optimizer in gap.optimizer.values:
            at = each(
                gap.sel(optimizer=optimizer, drop=True), over="context", expected=GAP, relation="at least"
            )
            claim.refutes(f"{way}, {optimizer}: share of the best total, GDPO - GRPO", at)
        claim.reports(
            f"{way}, AdamW: GRPO's share of the best total",
            each(kept.sel(algorithm=SUM, optimizer="AdamW", drop=True), over="context"),
        )
        last = data[way].kept.isel(iteration=-1, drop=True)
        claim.reports(
            f"{way}, in the end: share of the best total, GDPO - GRPO",
            each(last.sel(algorithm=GDPO, drop=True) - last.sel(algorithm=SUM, drop=True), over="context"),
        )
        bare = kept.sel(algorithm=GDPO, drop=True) - kept.sel(algorithm=PLAIN, drop=True)
        claim.reports(
            f"{way}, SGD: share of the best total, GDPO - GRPO without σ",
            each(bare.sel(optimizer="SGD", drop=True), over="context"),
        )
    course = data["sampled"].kept.mean(["iteration", "context"])
    ahead = course.sel(algorithm=GDPO) - course.sel(algorithm=SUM)
    told = "; ".join(
        f"{kind} " + ", ".join(f"{float(gain):+.3f}" for gain in ahead.sel(kind=kind)) for kind in KINDS
    )
    same = claim.also(
        "(The same sentence, its first half.) Directly applying GRPO causes distinct reward combinations "
        '"to collapse into identical advantage values, reducing the resolution of the training signal".'
    )
    same.refutes("different advantage vectors, GRPO / GDPO", shares)
    eight = {name: int(vectors.sel(group=8, algorithm=name)) for name in pairs.INNER}
    claim.finds(
        f"Groups of 8 pairs of coins have {eight[GDPO]} advantage vectors under GDPO, {eight[PLAIN]} under a "
        f"sum without σ, {eight[SUM]} under GRPO. By share of the best total, mean over training, GDPO is "
        f"ahead of GRPO by ({', '.join(str(name) for name in ahead.optimizer.values)}): {told}."
    )
    dropped = claim.also(
        "(SkyRL 2104, a review.) A filter on the sum's spread drops \"groups whose components differ but "
        'share the same total — the case GDPO is designed to keep".'
    )
    three, two = (Number(float(data["counted"][n]), LOUD, relation="at least") for n in ("three", "two"))
    dropped.refutes("three rewards: greatest advantage in groups whose sums tie", three)
    dropped.qualifies(
        "two rewards: greatest advantage in groups whose sums tie", two, only="with three rewards or more"
    )
    row = claim.ours("Normalised apart, a reward's size does not count: GDPO stands still between 1 and .1.")
    first = data["sizes"]["first"]
    row.refutes("GDPO: π(a) - its start", Number(float(first.sel(algorithm=GDPO)) - 0.3, 0.0, 1e-9))
    row.refutes("GRPO: π(a)", Number(float(first.sel(algorithm=SUM)), SURE, relation="at least"))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """How many advantage vectors there are, and what that is worth in training."""
    figure.set_size_inches(7.4, 3.0)
    left, right = plotting.panels(figure, 1, 2)
    for name, color in zip(pairs.INNER, plotting.COLORS, strict=False):
        here = data["counted"].vectors.sel(algorithm=name)
        left.plot(here.group, here, "o-", ms=4, color=color, label=name)
    left.set(xscale="log", yscale="log", xlabel="group size", ylabel="different advantage vectors")
    left.set_xticks(COUNTED, [str(size) for size in COUNTED])
    left.minorticks_off()
    left.set_title("GDPO tells more groups apart …", loc="left")
    left.legend()
    kept = data["sampled"].kept.mean("iteration").sel(optimizer="AdamW", drop=True)
    gap = kept.sel(algorithm=GDPO, drop=True) - kept.sel(algorithm=SUM, drop=True)
    plotting.intervals(right, each(gap, over="context"), expected=0.0)
    right.set(xlabel="GDPO − GRPO, share of the best total")
    right.set_title("… and what that is worth over training, AdamW", loc="left")
