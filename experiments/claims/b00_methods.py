"""One formula, ten methods: each row of Table 1 by hand, by autodiff and by the libraries.

Claim B0 of arXiv:2601.05002: equation (1), J = E[sum_i sum_t alpha min(s A, clip(s) A) - beta R] with
A = r - mean(r), is each of ten methods under the alpha, s and R of Table 1. Refuted if, on random ragged
groups with both sides of the clip active, a method's loss or gradient leaves the row written by hand by 1e-9
of its size, or a library's numbers (where one implements the method) by more than their stated tolerance.
Qualified where a row holds only under a reading that the table does not state.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.problems.shared_prefix import penalty_by_hand
from experiments.formulas.token_weights import TokenWeights, token_weights
from experiments.verdict import Number, judge, worst
from grpo_jax import methods, presets
from grpo_jax.presets.compare import random_batch
from grpo_jax.surrogate import Method, loss, objective
from grpo_jax.types import Rollout

CLAIM = "B0"
PAPER = "B"
PRECISION = "float64"

SIZES = {"smoke": (1, 1), "quick": (3, 1), "full": (40, 4)}
"""Random batches for each method, and cases of each library."""
ROWS = ("grpo", "grpo_v32", "gspo_token", "gtpo", "dapo", "cppo", "dr_grpo", "gpg", "cispo", "gcpo")
"""Table 1, in its order."""
SHOWN = (
    *ROWS,
    *("tic_grpo_unclipped", "tic_grpo", "tic_grpo_truncated", "tic_grpo_score", "rloo"),
    *("dual_clip", "sapo", "vespo", "gmpo", "luspo"),
)
"""The panels of the figure."""
GSPO = {"loss_agg_mode": "seq-mean-token-mean", "clip_ratio_low": 0.0003, "clip_ratio_high": 0.0004}
V32 = {"scale_rewards": "none", "use_bias_correction_kl": True, "off_policy_mask_threshold": 0.1}
LIBRARY: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "grpo": [("trl", "grpo", {"epsilon": 0.2, "beta": 0.04, "use_bias_correction_kl": False})],
    "grpo_v32": [("trl", "grpo", {"epsilon": 0.2, "beta": 0.04, **V32})],
    "gspo_token": [
        ("trl", "grpo", {"epsilon": 3e-4, "epsilon_high": 4e-4, "importance_sampling_level": "sequence"}),
        ("verl", "gspo", GSPO),
    ],
    "dapo": [
        ("trl", "dapo", {"epsilon": 0.2, "epsilon_high": 0.28}),
        ("verl", "vanilla", {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}),
    ],
    "dr_grpo": [
        ("trl", "dr_grpo", {"epsilon": 0.2, "scale_rewards": "none", "max_completion_length": 16}),
        ("verl", "vanilla", {"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": False}),
    ],
    "gpg": [("verl", "gpg", {"adv_estimator": "gpg"})],
    "cispo": [
        ("trl", "cispo", {"epsilon_high": 2.0}),
        ("verl", "cispo", {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}),
    ],
}
"""Row -> the libraries' cases that implement it."""
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
TOLERANCE = 1e-9
RATIOS = np.exp(np.linspace(-np.log(4), np.log(4), 121))
LEVELS = np.linspace(-2, 2, 81)
LENGTH = 4
"""Tokens of the output whose weight the figure shows; all of them move by the same ratio."""


def by_hand(name: str, rollout: Rollout, logp: jax.Array, out: TokenWeights) -> jax.Array:
    """Equation (1) with the row of Table 1: the value that goes with ``out``, term by term."""
    mask, length = rollout.mask, jnp.sum(rollout.mask, 2, keepdims=True)
    d = jnp.where(mask > 0, logp - rollout.old_logp, 0)
    if name in ("gpg", "cispo"):
        return jnp.sum(out.weight * out.advantage * logp)
    s = {
        "gspo_token": jnp.exp(jnp.sum(d, 2, keepdims=True) / length),
        "gcpo": jnp.exp(jnp.sum(d, 2, keepdims=True)),
    }
    ratio = s.get(name, jnp.exp(d))
    alpha = out.weight / ratio / (length if name == "gcpo" else 1)
    low, high = {"gspo_token": (3e-4, 4e-4), "dapo": (0.2, 0.28)}.get(name, (0.2, 0.2))
    clipped = jnp.clip(ratio, 1 - low, 1 + high)
    gain = jnp.sum(alpha * jnp.minimum(ratio * out.advantage, clipped * out.advantage))
    return gain - jnp.sum(penalty_by_hand(name, rollout, logp, out)[0])


def compare(name: str, seed: int) -> dict[str, float]:
    """One method on one random batch: how far code and closed form are apart, and what the clip holds."""
    rollout, logp = random_batch(seed=seed)
    method = methods.get(name)
    out = token_weights(name, rollout, logp)
    policy = Method(**{**vars(method), "penalty": None})
    grad = -jax.grad(loss, argnums=2)(policy, rollout, logp)
    found = {"gradient_error": float(jnp.max(jnp.abs(grad - out.gradient)) / jnp.max(jnp.abs(out.gradient)))}
    if name in ROWS:
        value, hand = -loss(method, rollout, logp), by_hand(name, rollout, logp, out)
        found["value_error"] = float(jnp.abs(value - hand) / jnp.abs(hand))
        slope = penalty_by_hand(name, rollout, logp, out)[1]
        pull = grad + jax.grad(loss, argnums=2)(method, rollout, logp)
        size = jnp.max(jnp.abs(slope))
        found["penalty_error"] = float(jnp.max(jnp.abs(pull - slope)) / jnp.where(size > 0, size, 1))
    live = jnp.broadcast_to(out.live, logp.shape)
    for side, sign in (("held_high", 1), ("held_low", -1)):
        mine = (rollout.mask > 0) & (jnp.broadcast_to(out.advantage, logp.shape) * sign > 0)
        found[side] = float(jnp.sum(mine & ~live) / jnp.sum(mine))
    return found


def library_error(name: str, most: int) -> tuple[float, int]:
    """The worst ratio of error to tolerance over a row's library cases, and how many were tried."""
    cases, errors = json.loads((GOLDEN / "index.json").read_text())["cases"], []
    for wanted in LIBRARY.get(name, []):
        found = [c for c in cases if (c["library"], c["method"], c["options"]) == wanted]
        errors += [_case_error(case, options_of(case)) for case in found[:most]]
    return max(errors, default=np.nan), len(errors)


def options_of(case: dict) -> dict:
    """The case's options in the words of ``presets``."""
    if case["library"] == "trl":
        return {"loss_type": case["method"], "beta": 0.0} | case["options"]
    return {"loss_mode": case["method"]} | case["options"]


def _case_error(case: dict, options: dict) -> float:
    file = np.load(GOLDEN / case["file"])
    rows, size = file["logp"].shape[0], case["group_size"]

    def grouped(x: np.ndarray) -> jax.Array:
        return jnp.asarray(x.reshape(rows // size, size, *x.shape[1:]))

    logps = {f"{who}_logp": grouped(file["old_logp"]) for who in ("sampling", "old")}
    rollout = Rollout(
        prompts=jnp.arange(rows // size),
        tokens=jnp.zeros((rows // size, size, file["logp"].shape[1]), int),
        mask=grouped(file["mask"]),
        rewards=grouped(file["rewards"][:, None]),
        multiplicity=jnp.ones((rows // size, size)),
        ref_logp=grouped(file["ref_logp"]),
        **logps,
    )
    method = presets.PRESETS[case["library"]](**options)
    value, grad = jax.value_and_grad(loss, argnums=2)(method, rollout, grouped(file["logp"]))
    rtol, atol = case["tolerance"]["rtol"], case["tolerance"]["atol"]
    pairs = ((value, file["expected_loss"]), (np.asarray(grad).reshape(rows, -1), file["expected_grad"]))
    return max(float(np.max(np.abs(a - b) / (atol + rtol * np.abs(b)))) for a, b in pairs)


def literal_reading(seed: int) -> dict[str, float]:
    """GPG and CISPO with the minimum of (1) left on, and how often GCPO counts an output."""
    rollout, logp = random_batch(seed=seed)
    valid, found = rollout.mask > 0, {}
    for name, s in (("gpg", logp), ("cispo", jnp.exp(logp - rollout.old_logp) * logp)):
        a = jnp.broadcast_to(token_weights(name, rollout, logp).advantage, logp.shape)
        moves = s * a < jnp.clip(s, 0.8, 1.2) * a
        losers = valid & (a < 0)
        found[name] = float(jnp.sum(moves & losers) / jnp.sum(losers))
    out = token_weights("gcpo", rollout, logp)
    length = jnp.sum(rollout.mask, 2, keepdims=True)
    grad = -jax.grad(loss, argnums=2)(methods.get("gcpo"), rollout, logp)
    told = out.gradient / length
    moved = told != 0
    counted = jnp.where(moved, grad / jnp.where(moved, told, 1), length)
    found["gcpo"] = float(jnp.sum(jnp.where(moved, counted, 0)) / jnp.sum(moved))
    found["gcpo_length_error"] = float(jnp.max(jnp.abs(jnp.where(valid, counted - length, 0))))
    return found


def token_map(name: str) -> np.ndarray:
    """[level, ratio] gradient of one token of an output of four; 1 is a live token at ratio 1 and A = 1."""
    a, ratio = (x.ravel() for x in np.meshgrid(LEVELS, RATIOS, indexing="ij"))
    runs = a.size
    here = jnp.full((1, 1, LENGTH, runs), -1.0)
    rollout = Rollout(
        prompts=jnp.arange(1),
        tokens=jnp.zeros((1, 1, LENGTH, 1), int),
        mask=jnp.ones((1, 1, LENGTH, 1)),
        rewards=jnp.zeros((1, 1, 1, 1)),
        multiplicity=jnp.ones((1, 1, 1)),
        sampling_logp=here,
        old_logp=here - jnp.log(ratio),
        ref_logp=here,
        entropy=jnp.zeros((1, 1, LENGTH, 1)),
    )
    method = Method(**{**vars(methods.get(name)), "penalty": None})
    advantage = jnp.asarray(a)[None, None, None]
    grad = jax.grad(lambda at: jnp.sum(objective(method, rollout, advantage, at)))(here)[0, 0, 0]
    unit = rollout._replace(old_logp=here)
    one = jax.grad(lambda at: jnp.sum(objective(method, unit, jnp.ones_like(advantage), at)))(here)[0, 0, 0]
    return np.asarray(grad / one).reshape(len(LEVELS), len(RATIOS))


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Errors of every method against its closed form, of the rows against libraries, and the maps."""
    batches, cases = SIZES[size]
    seeds = int(jax.random.key_data(key)[-1]) + np.arange(batches)
    names = list(methods.METHODS)
    found = [[compare(name, int(seed)) for seed in seeds] for name in names]
    fields = ("gradient_error", "value_error", "penalty_error", "held_high", "held_low")
    table = {f: (("algorithm", "batch"), [[c.get(f, np.nan) for c in row] for row in found]) for f in fields}
    golden = [library_error(name, cases) for name in ROWS]
    literal = [literal_reading(int(seed)) for seed in seeds]
    return xr.Dataset(
        {
            **table,
            "library_error": ("row", [g[0] for g in golden]),
            "library_cases": ("row", [g[1] for g in golden]),
            "spread_of_tables": ("row", [_table_gap(name) for name in ROWS]),
            "literal": (("reading", "batch"), [[x[k] for x in literal] for k in literal[0]]),
            "map": (("shown", "level", "ratio"), [token_map(name) for name in SHOWN]),
            "note": ("algorithm", [row.note for row in methods.TABLE.values()]),
        },
        coords={
            "algorithm": names,
            "row": list(ROWS),
            "reading": list(literal[0]),
            "shown": list(SHOWN),
            "level": LEVELS,
            "ratio": RATIOS,
        },
    )


def _table_gap(name: str) -> float:
    """How far the table's gradient is from the first library's: ddof, constants, denominators."""
    if name not in LIBRARY:
        return np.nan
    library, kind, options = LIBRARY[name][0]
    case = {"library": library, "method": kind, "options": options}
    return presets.compare(methods.get(name), presets.PRESETS[library](**options_of(case))).gradient


def check(data: xr.Dataset):
    """Closed forms, values and libraries refute; unstated readings qualify."""
    names = [str(n) for n in data.algorithm.values]
    tested = data.library_error.dropna("row")
    literal = data.literal.mean("batch")
    numbers = {
        "gradient error, Table 1": worst(
            data.gradient_error.sel(algorithm=list(ROWS)), expected=0, tolerance=TOLERANCE
        ),
        "gradient error, other methods": worst(
            data.gradient_error.sel(algorithm=[n for n in names if n not in ROWS]),
            expected=0,
            tolerance=TOLERANCE,
        ),
        "value error, Table 1": worst(
            data.value_error.sel(algorithm=list(ROWS)), expected=0, tolerance=TOLERANCE
        ),
        "penalty's gradient error, Table 1": worst(
            data.penalty_error.sel(algorithm=list(ROWS)), expected=0, tolerance=TOLERANCE
        ),
        "worst library error over tolerance": Number(float(tested.max()), expected=1.0, relation="at most"),
        "rows that a library implements": Number(float(tested.size)),
        "share of winners held by GRPO's clip": Number(
            float(data.held_high.sel(algorithm="grpo").mean()), expected=0.02, relation="at least"
        ),
        "share of losers held by GRPO's clip": Number(
            float(data.held_low.sel(algorithm="grpo").mean()), expected=0.02, relation="at least"
        ),
        "GCPO's count of an output less its length": worst(
            data.literal.sel(reading="gcpo_length_error"), expected=0, tolerance=1e-6
        ),
        **{
            f"losers with a gradient, {name} by (1)": Number(
                float(literal.sel(reading=name)), expected=1.0, tolerance=1e-9
            )
            for name in ("gpg", "cispo")
        },
        "GCPO's gradient over α s A": Number(
            float(literal.sel(reading="gcpo")), expected=1.0, tolerance=1e-9
        ),
        **{
            f"table against library, {name}": Number(float(data.spread_of_tables.sel(row=name)))
            for name in LIBRARY
        },
    }
    reports = {"rows that a library implements", *(f"table against library, {name}" for name in LIBRARY)}
    qualifies = {
        "losers with a gradient, gpg by (1)": "with the minimum off for GPG, whose s is negative",
        "losers with a gradient, cispo by (1)": "with the minimum off for CISPO, whose clip is inside sg",
        "GCPO's gradient over α s A": "with ω = |o_i| α s for GCPO, whose s is summed over t",
    }
    refutes = [name for name in numbers if name not in reports and name not in qualifies]
    return judge(numbers, refutes=refutes, qualifies=qualifies)


def draw(figure, data: xr.Dataset) -> None:
    """A panel for each method: the weight of a token over its ratio and its advantage."""
    figure.set_size_inches(10.5, 8.6)
    panels = figure.subplots(4, 5, sharex=True, sharey=True)
    for axes, name in zip(panels.flat, data.shown.values, strict=True):
        shown = data["map"].sel(shown=name)
        mesh = axes.pcolormesh(
            RATIOS, LEVELS, shown, cmap="RdBu_r", vmin=-3, vmax=3, shading="nearest", rasterized=True
        )
        axes.axvline(1, color="0.35", lw=0.6, ls=":")
        axes.axhline(0, color="0.35", lw=0.6, ls=":")
        axes.set_title(str(name).replace("_", " "), fontsize=9)
        axes.set(xscale="log", xticks=[0.25, 0.5, 1, 2, 4], yticks=[-2, 0, 2])
        axes.set_xticklabels(["¼", "½", "1", "2", "4"])
        axes.minorticks_off()
    for row, label in zip(panels[:, 0], ("Table 1", "Table 1", "trajectory ratio", "others"), strict=True):
        row.set_ylabel(f"{label}\nadvantage", fontsize=8.5)
    for axes in panels[-1]:
        axes.set_xlabel("ratio of every token", fontsize=8.5)
    bar = figure.colorbar(mesh, ax=panels, shrink=0.5, pad=0.01, extend="both")
    bar.set_label("∂J/∂log π of one token, in units of a live token at ratio 1, A = 1")
    figure.suptitle(
        "What a token's score is multiplied by. White: no gradient. Outputs of four tokens, penalties off",
        fontsize=10,
    )
