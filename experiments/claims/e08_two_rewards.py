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

from typing import Any

import xarray as xr

from experiments.harness.numbers import Number, each, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import pairs_of_rewards as pairs
from experiments.problems.pairs_of_rewards import GDPO, INNER, KINDS, PLAIN, SUM
from grpo_jax import plotting

PRECISION = "float64"
SIZES = sizes(listed=(8, 12, 64), drawn=(48, 128, 512), iterations=(300, 300, 2000), seeds=(2, 4, 16))

COUNTED, JUDGED = [4, 8, 16], [8, 16]
GAP, HALF, LOUD, SURE = 0.01, 0.5, 0.01, 0.95


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """What is counted, the identities, and training on every kind of question."""
    vectors = pairs.counted(COUNTED)
    found = {
        "counted": xr.Dataset({"vectors": vectors, "two": pairs.silent(2), "three": pairs.silent(3)}),
        "identities": pairs.identities(),
        "sizes": xr.Dataset({"first": pairs.between_sizes()}),
    }
    for way, exact in {"exact": True, "sampled": False}.items():
        kinds = [pairs.trained(kind, seed, size, exact=exact) for kind in KINDS]
        found[way] = xr.Dataset({"kept": xr.concat(kinds, xr.Variable("kind", list(KINDS)))})
    return found


def lead(kept: xr.DataArray) -> xr.DataArray:
    """GDPO's share of the best total reward less GRPO's."""
    return kept.sel(algorithm=GDPO, drop=True) - kept.sel(algorithm=SUM, drop=True)


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Resolution, convergence, the filter, and sizes."""
    checks = {
        "advantages: library - NumPy": "advantage",
        "GDPO's update - Σ w_G(p_m) ∇p_m": "update",
        "twice the same reward: GDPO - 2 GRPO": "placebo",
    }
    for name, gap in checks.items():
        claim.requires(name, worst(data["identities"][gap], tolerance=1e-10))
    vectors = data["counted"].vectors
    share = vectors.sel(algorithm=SUM, drop=True) / vectors.sel(algorithm=GDPO, drop=True)
    told = "different advantage vectors, GRPO / GDPO"
    shares = {
        f"groups of {size}": Number(float(share.sel(group=size)), HALF, relation="at most") for size in JUDGED
    }
    claim.refutes(told, shares)
    claim.reports(f"{told}, groups of {COUNTED[0]}", Number(float(share.sel(group=COUNTED[0]))))
    for way in ("exact", "sampled"):
        kept = data[way].kept
        for optimizer in kept.optimizer.values:
            course = lead(kept.mean("iteration")).sel(optimizer=optimizer, drop=True)
            ahead = each(course, over="context", expected=GAP, relation="at least")
            claim.refutes(f"{way}, {optimizer}: share of the best total, GDPO - GRPO", ahead)
        last = each(lead(kept.isel(iteration=-1, drop=True)), over="context")
        claim.reports(f"{way}, in the end: share of the best total, GDPO - GRPO", last)
    mean = lead(data["sampled"].kept.mean(["iteration", "context"]))
    by_kind = (f"{kind} " + ", ".join(f"{float(x):+.3f}" for x in mean.sel(kind=kind)) for kind in KINDS)
    eight = {name: int(vectors.sel(group=8, algorithm=name)) for name in INNER}
    claim.finds(
        f"Groups of 8 pairs of coins have {eight[GDPO]} advantage vectors under GDPO, {eight[PLAIN]} under a "
        f"sum without σ, {eight[SUM]} under GRPO. By share of the best total, mean over training, GDPO is "
        f"ahead of GRPO by ({', '.join(str(name) for name in mean.optimizer.values)}): {'; '.join(by_kind)}."
    )

    same = claim.also(
        "(The same sentence, its first half.) Directly applying GRPO causes distinct reward combinations "
        '"to collapse into identical advantage values, reducing the resolution of the training signal".'
    )
    same.refutes(told, shares)
    dropped = claim.also(
        "(SkyRL 2104, a review.) A filter on the sum's spread drops \"groups whose components differ but "
        'share the same total — the case GDPO is designed to keep".'
    )
    three, two = (Number(float(data["counted"][n]), LOUD, relation="at least") for n in ("three", "two"))
    dropped.refutes("three rewards: greatest advantage in groups whose sums tie", three)
    only = "with three rewards or more"
    dropped.qualifies("two rewards: greatest advantage in groups whose sums tie", two, only=only)
    row = claim.ours("Normalised apart, a reward's size does not count: GDPO stands still between 1 and .1.")
    first = data["sizes"]["first"]
    row.refutes("GDPO: π(a) - its start", Number(float(first.sel(algorithm=GDPO)) - 0.3, 0.0, 1e-9))
    row.refutes("GRPO: π(a)", Number(float(first.sel(algorithm=SUM)), SURE, relation="at least"))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """How many advantage vectors there are, and what that is worth in training."""
    figure.set_size_inches(7.4, 3.0)
    left, right = plotting.panels(figure, 1, 2)
    for name, color in zip(INNER, plotting.COLORS, strict=False):
        here = data["counted"].vectors.sel(algorithm=name)
        left.plot(here.group, here, "o-", ms=4, color=color, label=name)
    left.set(xscale="log", yscale="log", xlabel="group size", ylabel="different advantage vectors")
    left.set_xticks(COUNTED, [str(size) for size in COUNTED])
    left.minorticks_off()
    left.set_title("GDPO tells more groups apart …", loc="left")
    left.legend()
    gap = lead(data["sampled"].kept.mean("iteration").sel(optimizer="AdamW", drop=True))
    plotting.intervals(right, each(gap, over="context"), expected=0.0)
    right.set(xlabel="GDPO − GRPO, share of the best total")
    right.set_title("… and what that is worth over training, AdamW", loc="left")
