"""Without the spread GRPO is RLHF, with a penalty that the group's own mean enlarges.

Claim A9 of arXiv:2502.18548: for A = r - mean the expected preference is (1 - 1/G)(E_pi r - E_old r), so with
the direct penalty the stationary policy is RLHF's, (4), at beta G / (G - 1); leaving each answer out of its
own baseline removes the factor. Noise changes neither. Refuted if the preference is off by 1e-12, exact
ascent ends 1e-6 from it, or sampled SGD or AdamW, extrapolated to learning rate zero, is not within 0.01 of
it. Here, unlike in the other claims, the extrapolation is quadratic in the learning rate; qualified if the
linear one is not within 0.01 of it (99.9 % intervals of the difference, run by run). All training starts
apart from pi_ref and from where it should end: a penalty that pulls to the start or to the sampling policy,
or a run too short to move, ends elsewhere.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib import colormaps

from experiments.alignment import ascend, furthest, grid, intercepts, light, method, problem, time_average
from experiments.verdict import Number, judge, worst
from grpo_jax.exact import Exact, expected_objective
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.parts.advantages import GroupMean, LeaveOneOut, Normalized
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import rlhf, shift_only_direct

CLAIM = "A9"
PAPER = "A"
PRECISION = "float64"

REWARDS = np.array([0.95, 0.6, 0.2, 0.05])
"""Rewards, or success probabilities of coin flips."""
REFERENCES = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.5, 0.1, 0.1, 0.3]])
BETAS = np.array([0.3, 0.5, 0.8, 1.3, 2.0])
STARTS = np.array([[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85]])
VARIANTS = {
    "mean, G = 2": (False, 2, False),
    "mean, G = 4": (False, 4, False),
    "mean, G = 64, coin flips": (False, 64, True),
    "left out, G = 2": (True, 2, False),
    "left out, G = 8, coin flips": (True, 8, True),
}
"""Whether answers are left out of their baseline, the group's size, and whether rewards are coin flips."""
SAMPLED = ("mean, G = 2", "left out, G = 2", "left out, G = 8, coin flips")
"""Of the three the last is trained on samples, as its rewards are noisy; counts serve for the others."""
SAMPLED_BETAS = np.array([0.5, 1.3])
RATES = {"SGD": np.array([0.05, 0.1, 0.2]), "AdamW": np.array([0.01, 0.02, 0.04])}
SIZES = {"smoke": (48, 4000), "quick": (48, 4000), "full": (256, 20000)}
"""Seeds and iterations of sampled runs."""
MARGIN = 0.01


def setting(variant: str, reference: np.ndarray, beta, **changes):
    """The variant with the direct penalty, runs last."""
    left_out, group, flips = VARIANTS[variant]
    center = LeaveOneOut() if left_out else GroupMean()
    made = dataclasses.replace(method(beta, direct=True), advantage=Normalized(center=center, scale=None))
    noise = Bernoulli() if flips else None
    rewards = changes.pop("rewards", REWARDS)
    return problem(reference, rewards, beta, group_size=group, method=made, noise=noise, **changes)


def factor(variant: str) -> float:
    """What multiplies the reward: 1 - 1/G, or 1 if answers are left out of their baseline."""
    left_out, group, _ = VARIANTS[variant]
    return 1.0 if left_out else 1 - 1 / group


def preference_error(variant: str, root: int) -> float:
    """Greatest error of the expected preference of random policies over other random ones."""
    pi, old = np.random.default_rng(root).dirichlet(np.ones(4), (2, 50)).transpose(0, 2, 1)
    logits, sampler = np.log(pi)[None], np.log(old)[None]
    expectation = Exact(cells=2 if VARIANTS[variant][2] else 0)
    config = setting(variant, old, np.zeros(50), expectation=expectation)
    found = np.asarray(light(expected_objective)(config, logits, old=sampler, reference=sampler))
    return float(abs(found - factor(variant) * (REWARDS @ pi - REWARDS @ old)).max())


def trained(variant: str) -> tuple[np.ndarray, list[float]]:
    """[K, reference, beta, start] policies after exact ascent, and distances from pi_ref under equal rewards.

    The latter twice: from pi_ref itself, and from a start apart.
    """
    r, b, s = grid(range(len(REFERENCES)), BETAS, range(len(STARTS)))
    r, s = r.astype(int), s.astype(int)
    count = len(REFERENCES)
    reference = np.concatenate([REFERENCES[r], REFERENCES, REFERENCES]).T
    start = np.concatenate([STARTS[s], REFERENCES, np.repeat(STARTS[:1], count, 0)]).T
    equal = np.arange(reference.shape[1]) >= r.size
    beta = np.append(b, np.full(2 * count, BETAS[0]))
    rewards = np.where(equal, 0.5, REWARDS[:, None])
    options = {"start": start, "optimizer": SGD(learning_rate=jnp.asarray(3 / (1 + beta)))}
    found = ascend(setting(variant, reference, beta, rewards=rewards, **options), beta.size, iterations=2500)
    left = abs(found - reference)[:, equal].reshape(4, 2, count).max((0, 2))
    return found[:, ~equal].reshape(4, count, len(BETAS), len(STARTS)), left.tolist()


def sampled(variant: str, optimizer, rates: np.ndarray, size: tuple, root: int) -> np.ndarray:
    """[rate, beta x K, seed] time averages."""
    rate, beta, seed = grid(rates, SAMPLED_BETAS, np.arange(size[0]))
    reference = np.repeat(REFERENCES[0][:, None], rate.size, 1)
    options = {"optimizer": optimizer(learning_rate=jnp.asarray(rate)), "expectation": None}
    options["start"] = np.repeat(STARTS[0][:, None], rate.size, 1)
    config = setting(variant, reference, beta, **options)
    average = time_average(config, seed.astype(int), root=root, iterations=size[1])
    average = average.reshape(4, len(rates), len(SAMPLED_BETAS), size[0])
    return np.moveaxis(average, 0, 2).reshape(len(rates), -1, size[0])


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Expected preferences, exact ascent, and sampled time averages."""
    root, chosen = int(jax.random.key_data(key)[-1]), SIZES[size]
    averages = [
        [sampled(name, optimizer, RATES[kind], chosen, root) for name in SAMPLED]
        for kind, optimizer in (("SGD", SGD), ("AdamW", AdamW))
    ]
    ended, left = zip(*(trained(name) for name in VARIANTS), strict=True)
    return xr.Dataset(
        {
            "preference_error": ("variant", [preference_error(name, root) for name in VARIANTS]),
            "trained": (("variant", "action", "reference", "beta", "start"), np.stack(ended)),
            "average": (("optimizer", "sampled", "rate", "entry", "seed"), np.array(averages)),
            "placebo": (("variant", "from"), np.array(left)),
        },
        coords={
            "variant": list(VARIANTS), "beta": BETAS, "optimizer": list(RATES), "sampled": list(SAMPLED),
            "from": ["pi_ref", "elsewhere"],
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """Preferences, trained policies, sampled ones, and what ignoring the factor would give."""
    numbers = {
        f"equal rewards, from {start}: exact ascent - pi_ref": worst(
            data.placebo.sel({"from": start}), expected=0, tolerance=tolerance
        )
        for start, tolerance in (("pi_ref", 1e-12), ("elsewhere", 1e-6))
    }
    name = "preference - (1 - 1/G)(E r - E_old r), G/(G - 1) of it if left out"
    numbers[name] = worst(data.preference_error, expected=np.zeros(len(VARIANTS)), tolerance=1e-12)
    for variant, (left_out, group, _) in VARIANTS.items():
        size = math.inf if left_out else group
        aim = np.array(
            [[shift_only_direct(r, REWARDS, b, group_size=size) for b in BETAS] for r in REFERENCES]
        )
        gap = data.trained.sel(variant=variant).values - np.moveaxis(aim, -1, 0)[..., None]
        numbers[f"{variant}: exact ascent - theory"] = worst(gap, expected=0 * gap, tolerance=1e-6)
    ended = data.trained.sel(variant="mean, G = 2").isel(start=0)
    plain = np.array([[rlhf(r, REWARDS, b) for b in BETAS] for r in REFERENCES])
    ignored = float(abs(ended.values - np.moveaxis(plain, -1, 0)).max())
    numbers["mean, G = 2: distance from RLHF at beta itself"] = Number(ignored, 0.05, relation="at least")
    numbers |= sampled_numbers(data)
    judged = [name for name, number in numbers.items() if number.expected is not None]
    qualifies = {name: LINEAR for name in judged if "linear less quadratic" in name}
    return judge(numbers, refutes=[name for name in judged if name not in qualifies], qualifies=qualifies)


LINEAR = "for the quadratic extrapolation to learning rate zero"


def sampled_numbers(data: xr.Dataset) -> dict[str, Number]:
    """For each variant and optimizer: both extrapolations, how they differ in every run, and the slope."""
    numbers = {}
    for variant in SAMPLED:
        aim = np.array([rlhf(REFERENCES[0], REWARDS, b / factor(variant)) for b in SAMPLED_BETAS]).ravel()
        for optimizer in RATES:
            average = data.average.sel(optimizer=optimizer, sampled=variant).values
            quadratic, slopes = intercepts(RATES[optimizer], average, degree=2)
            linear, _ = intercepts(RATES[optimizer], average)
            name = f"{variant}, {optimizer}: sampled, extrapolated"
            numbers[f"{name} (quadratic) - theory"] = furthest(quadratic, aim, tolerance=MARGIN)
            numbers[f"{name}: linear less quadratic"] = furthest(
                linear - quadratic, 0 * aim, tolerance=MARGIN
            )
            numbers[f"{name} (linear) - theory"] = _reported(furthest(linear, aim, tolerance=MARGIN))
            numbers[f"{variant}, {optimizer}: slope in the rate, worst"] = Number(
                float(abs(slopes.mean(1)).max())
            )
    return numbers


def _reported(number: Number) -> Number:
    """Its value and interval, judging nothing."""
    return Number(number.value, low=number.low, high=number.high)


def draw(figure, data: xr.Dataset) -> None:
    """Trained policies against beta, and against the penalty that the theory says they feel; sampled runs."""
    figure.set_size_inches(11.5, 4.0)
    left, middle, right = figure.subplots(1, 3)
    colors = dict(zip(VARIANTS, colormaps["turbo"](np.linspace(0.05, 0.92, len(VARIANTS))), strict=True))
    line = np.logspace(-0.7, 1.1, 120)
    exact = np.asarray(rlhf(REFERENCES[0], REWARDS, line))[:, 0]
    middle.plot(line, exact, color="0.1", lw=1.2, label="RLHF")
    for row, variant in enumerate(VARIANTS):
        ended = data.trained.sel(variant=variant).isel(action=0, reference=0, start=0)
        style = {"ms": 11 - 1.3 * row, "mfc": "none", "mew": 1.6, "color": colors[variant]}
        left.plot(
            line, np.interp(line / factor(variant), line, exact, right=np.nan), lw=1, color=colors[variant]
        )
        left.plot(BETAS, ended, "o", label=variant, **style)
        middle.plot(BETAS / factor(variant), ended, "o", **style)
    left.set(xlabel="β", ylabel="trained π(best)", title="The group's mean weakens the reward…")
    middle.set(xlabel="β ÷ (1 − 1/G), or β if left out", title="…by 1 − 1/G, and nothing else")
    left.legend(frameon=False, fontsize=8)
    middle.legend(frameon=False, fontsize=8)
    for variant in SAMPLED:
        average = data.average.sel(optimizer="SGD", sampled=variant).isel(entry=0)
        error = 3.29 * average.std("seed") / np.sqrt(average.sizes["seed"])
        right.errorbar(
            RATES["SGD"],
            average.mean("seed"),
            error,
            fmt="o",
            ms=4,
            capsize=2,
            color=colors[variant],
            label=variant,
        )
        aim = float(rlhf(REFERENCES[0], REWARDS, SAMPLED_BETAS[0] / factor(variant))[0])
        right.axhline(aim, color=colors[variant], lw=1, ls="--")
    right.set(xlim=(0, None), xlabel="learning rate of SGD", ylabel="time average of π(best)")
    right.set_title(f"Sampled, β = {SAMPLED_BETAS[0]:g} (dashed: theory)")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, middle):
        axes.set(xscale="log", xlim=(0.25, 5), ylim=(0.05, 0.75))
        axes.set_xticks([0.3, 0.5, 1, 2, 4], ["0.3", "0.5", "1", "2", "4"])
        axes.set_xticks([], minor=True)
    for axes in (left, middle, right):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
