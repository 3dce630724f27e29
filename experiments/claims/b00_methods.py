"""Ten group-based methods maximise one objective, J = E[Σ_i Σ_t α min(s A, clip(s, 1 − ε_low, 1 + ε_up) A)
− βR] with A = r − r̄, each under its own α, s and R.

[B] (arXiv:2601.05002), equation (1) and Table 1, row by row. Random ragged groups with graded rewards, off
policy by a fifth of a nat, so that both sides of the clip act; each row written by hand, the method as its
own paper has it, and the numbers of the libraries that implement it.

Refuted if a method's loss, its gradient or its penalty's gradient leaves its row by 1e-9 of its size, or if
the row, with the library's constants in the place of its own (ddof, what is added to the spread, the
denominator, CISPO's cap) and nothing else changed, leaves a library's numbers by more than their stated
tolerance. Qualified where a row holds only under a reading that the table does not state: taken literally,
the minimum of (1) takes the gradient from losers where s is negative (GPG, CISPO), and CPPO prunes by |A| and
not by |A|/σ_r. CISPO's M is read as a cap of 5 on the ratio, which no token here reaches; the penalty of
Dr. GRPO, whose coefficient is 0, is tested at 0.04; GCPO is implemented as printed, its sequence ratio summed
over t. Our presets against the libraries, the other methods' closed forms, and that both sides of the clip
act, are checks of the instrument.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.formulas.compiled import light
from experiments.formulas.token_weights import TokenWeights, token_weights
from experiments.harness.numbers import Number, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.shared_prefix import penalty_by_hand
from grpo_jax import methods, plotting, presets
from grpo_jax.parts.advantages import GroupSpread
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.presets.compare import random_batch
from grpo_jax.surrogate import Method, loss, objective
from grpo_jax.types import Rollout

PRECISION = "float64"
SIZES = sizes(batches=(1, 2, 40), cases=(1, 1, 4))
"""Random batches for each method, and cases of each library."""

NAMES = {
    "grpo": "GRPO", "grpo_v32": "GRPO (V3.2)", "gspo_token": "GSPO", "gtpo": "GTPO", "dapo": "DAPO",
    "cppo": "CPPO", "dr_grpo": "Dr. GRPO", "gpg": "GPG", "cispo": "CISPO", "gcpo": "GCPO",
}  # fmt: skip
TITLES = NAMES | {
    "tic_grpo_unclipped": "TIC-GRPO, free", "tic_grpo": "TIC-GRPO", "tic_grpo_truncated": "TIC-GRPO, cut",
    "tic_grpo_score": "TIC-GRPO, score", "dual_clip": "dual clip",
}  # fmt: skip
ROWS = tuple(NAMES)
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
GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
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


def compare(name: str, rollout: Rollout, logp: jax.Array) -> dict[str, jax.Array]:
    """One method on one random batch: how far code and closed form are apart, and what the clip holds."""
    method = methods.get(name)
    if name == "dr_grpo":
        method = dataclasses.replace(method, penalty=Penalty(divergence=K3(), coef=0.04))
    out = token_weights(name, rollout, logp)
    policy = dataclasses.replace(method, penalty=None)
    grad = -jax.grad(loss, argnums=2)(policy, rollout, logp)
    found = {"gradient_error": (jnp.max(jnp.abs(grad - out.gradient)) / jnp.max(jnp.abs(out.gradient)))}
    if name in ROWS:
        value, hand = -loss(method, rollout, logp), by_hand(name, rollout, logp, out)
        found["value_error"] = jnp.abs(value - hand) / jnp.abs(hand)
        slope = penalty_by_hand(name, rollout, logp, out)[1]
        pull = grad + jax.grad(loss, argnums=2)(method, rollout, logp)
        size = jnp.max(jnp.abs(slope))
        found["penalty_error"] = jnp.max(jnp.abs(pull - slope)) / jnp.where(size > 0, size, 1)
    live = jnp.broadcast_to(out.live, logp.shape)
    for side, sign in (("held_high", 1), ("held_low", -1)):
        mine = (rollout.mask > 0) & (jnp.broadcast_to(out.advantage, logp.shape) * sign > 0)
        found[side] = jnp.sum(mine & ~live) / jnp.sum(mine)
    return found


def library_error(name: str, most: int) -> tuple[float, float]:
    """The worst ratio of error to tolerance: of our presets over a row's library cases, and of the row.

    The row is held, in the library's constants, against the first library that implements it.
    """
    cases, errors, rows = json.loads((GOLDEN / "index.json").read_text())["cases"], [], []
    for place, wanted in enumerate(LIBRARY.get(name, [])):
        found = [c for c in cases if (c["library"], c["method"], c["options"]) == wanted]
        for case in found[:most]:
            preset = presets.PRESETS[case["library"]](**options_of(case))
            errors.append(_case_error(case, preset))
            if place == 0:
                rows.append(_case_error(case, with_constants(name, preset)))
    return max(errors, default=np.nan), max(rows, default=np.nan)


def with_constants(name: str, preset: Method) -> Method:
    """The row with a library's constants, and nothing else of the library's.

    These are ddof and what is added to a spread, where the row has one; Dr. GRPO's denominator, GPG's α̂ and
    CISPO's cap.
    """
    row: Any = methods.get(name)
    theirs: Any = preset
    if name == "gpg":
        return dataclasses.replace(row, advantage=theirs.advantage)
    if name == "dr_grpo":
        return dataclasses.replace(row, reduction=theirs.reduction)
    if row.advantage.scale is not None:
        scaled = dataclasses.replace(row.advantage, scale=GroupSpread(ddof=1.0), eps=theirs.advantage.eps)
        row = dataclasses.replace(row, advantage=scaled)
    if name == "cispo":
        row = dataclasses.replace(row, gain=dataclasses.replace(row.gain, high=theirs.gain.high))
    return row


def options_of(case: dict) -> dict:
    """The case's options in the words of ``presets``."""
    if case["library"] == "trl":
        return {"loss_type": case["method"], "beta": 0.0} | case["options"]
    return {"loss_mode": case["method"]} | case["options"]


def _case_error(case: dict, method: Method) -> float:
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
    value, grad = light(jax.value_and_grad(loss, argnums=2))(method, rollout, grouped(file["logp"]))
    rtol, atol = case["tolerance"]["rtol"], case["tolerance"]["atol"]
    pairs = ((value, file["expected_loss"]), (np.asarray(grad).reshape(rows, -1), file["expected_grad"]))
    return max(float(np.max(np.abs(a - b) / (atol + rtol * np.abs(b)))) for a, b in pairs)


@light
def literal_reading(rollout: Rollout, logp: jax.Array) -> dict[str, jax.Array]:
    """GPG and CISPO with the minimum of (1) on, CPPO's rule as printed, how often GCPO counts."""
    valid, found = rollout.mask > 0, {}
    for name, s in (("gpg", logp), ("cispo", jnp.exp(logp - rollout.old_logp) * logp)):
        a = jnp.broadcast_to(token_weights(name, rollout, logp).advantage, logp.shape)
        moves = s * a < jnp.clip(s, 0.8, 1.2) * a
        losers = valid & (a < 0)
        found[name] = jnp.sum(moves & losers) / jnp.sum(losers)
    rewards = jnp.sum(rollout.rewards, 2)
    shift = jnp.abs(rewards - rewards.mean(1, keepdims=True))
    printed, read = shift > 0.5, shift > 0.5 * rewards.std(1, keepdims=True)
    found["cppo"] = jnp.mean(printed == read)
    out = token_weights("gcpo", rollout, logp)
    length = jnp.sum(rollout.mask, 2, keepdims=True)
    grad = -jax.grad(loss, argnums=2)(methods.get("gcpo"), rollout, logp)
    told = out.gradient / length
    moved = told != 0
    counted = jnp.where(moved, grad / jnp.where(moved, told, 1), length)
    found["gcpo"] = jnp.sum(jnp.where(moved, counted, 0)) / jnp.sum(moved)
    found["gcpo_length_error"] = jnp.max(jnp.abs(jnp.where(valid, counted - length, 0)))
    return found


def token_map(name: str) -> jax.Array:
    """[level, ratio] gradient of one token of an output of four; 1 is a live token at ratio 1 and A = 1."""
    method = dataclasses.replace(methods.get(name), penalty=None)
    here = jnp.full((1, 1, LENGTH, len(RATIOS)), -1.0)

    def pushed(advantage: Any, ratio: Any) -> jax.Array:
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
        shared = jnp.full((1, 1, 1, 1), advantage)
        return jax.grad(lambda at: jnp.sum(objective(method, rollout, shared, at)))(here)[0, 0, 0]

    return jax.vmap(pushed, in_axes=(0, None))(jnp.asarray(LEVELS), jnp.asarray(RATIOS)) / pushed(1.0, 1.0)


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Errors of every method against its closed form, of the rows against libraries, and the maps."""
    seeds = seed + np.arange(size.batches)
    every = list(methods.METHODS)
    batches = [random_batch(seed=int(s)) for s in seeds]
    compared = light(lambda *batch: [compare(name, *batch) for name in every])
    rows = [compared(*batch) for batch in batches]
    errors = [by_batch([row[place] for row in rows]) for place in range(len(every))]
    maps = light(lambda: [token_map(name) for name in SHOWN])()
    at = {"shown": list(SHOWN), "level": LEVELS, "ratio": RATIOS}
    tried = {name: library_error(name, size.cases) for name in ROWS}
    return {
        "errors": xr.concat(errors, xr.Variable("algorithm", every), join="outer"),
        "libraries": xr.Dataset(
            {
                "error": ("algorithm", [error for error, _ in tried.values()]),
                "row": ("algorithm", [error for _, error in tried.values()]),
                "apart": ("algorithm", [_table_gap(name) for name in ROWS]),
            },
            {"algorithm": list(ROWS)},
        ),
        "literal": by_batch([literal_reading(*batch) for batch in batches]),
        "maps": xr.Dataset({"weight": (tuple(at), np.stack(maps))}, at),
    }


def by_batch(found: list[dict[str, Any]]) -> xr.Dataset:
    """Numbers of every batch; NaN where a method has none."""
    keys = ("value_error", "penalty_error", *found[0])
    return xr.Dataset({key: ("batch", [float(one.get(key, np.nan)) for one in found]) for key in keys})


def _table_gap(name: str) -> float:
    """How far the table's gradient is from the first library's: ddof, constants, denominators."""
    if name not in LIBRARY:
        return np.nan
    library, kind, options = LIBRARY[name][0]
    case = {"library": library, "method": kind, "options": options}
    return presets.compare(methods.get(name), presets.PRESETS[library](**options_of(case))).gradient


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Row by row: by hand, and against libraries; readings that the table does not state; instruments."""
    errors, libraries, literal = data["errors"], data["libraries"], data["literal"]
    others = errors.gradient_error.drop_sel(algorithm=list(ROWS))
    claim.requires("other methods: gradient - closed form", worst(others, tolerance=TOLERANCE))
    for side in ("held_high", "held_low"):
        share = Number(float(errors[side].sel(algorithm="grpo").mean()), expected=0.02, relation="at least")
        claim.requires(
            f"share of {'winners' if side == 'held_high' else 'losers'} that GRPO's clip holds", share
        )
    claim.requires("GCPO's count of an output - its length", worst(literal.gcpo_length_error, tolerance=1e-6))
    parts = {"loss": "value_error", "gradient": "gradient_error", "penalty": "penalty_error"}
    for row, name in NAMES.items():
        found = xr.concat(
            [errors[key].sel(algorithm=row) for key in parts.values()], xr.Variable("of", list(parts))
        )
        claim.refutes(f"{name}: loss and gradients - its row", worst(found, tolerance=TOLERANCE))
    tested = [row for row in ROWS if row in LIBRARY]
    for row in tested:
        here = libraries.sel(algorithm=row)
        for role, key, what in (
            (claim.requires, "error", "our preset"),
            (claim.refutes, "row", f"its row in {LIBRARY[row][0][0]}'s constants"),
        ):
            number = Number(float(here[key]), expected=1.0, relation="at most")
            role(f"{NAMES[row]}: {what} against the library, error over tolerance", number)
        claim.reports(
            f"{NAMES[row]}: table's gradient against {LIBRARY[row][0][0]}'s", Number(float(here.apart))
        )
    readings = {
        "gpg": "with the minimum off for GPG, whose s is negative",
        "cispo": "with the minimum off for CISPO, whose clip is inside sg",
    }
    for row, words in readings.items():
        number = Number(float(literal[row].mean()), expected=1.0, tolerance=TOLERANCE)
        claim.qualifies(f"{NAMES[row]} by (1): share of losers with a gradient", number, only=words)
    same = Number(float(literal.cppo.mean()), expected=1.0, tolerance=TOLERANCE)
    told = "CPPO: share of outputs that |A| > γ and |A|/σ > γ select alike"
    claim.qualifies(told, same, only="with |A|/σ_r in CPPO's rule")
    times = Number(float(literal.gcpo.mean()))
    claim.reports("GCPO: gradient over α s A", times)
    otherwise = [n for n, role in claim.roles.items() if role == "qualifies" and not claim.numbers[n].holds]
    held = [number for name, number in claim.numbers.items() if claim.roles[name] == "refutes"]
    claim.finds(
        f"All {len(ROWS)} rows give their methods' losses and gradients, {len(tested)} of them a library's "
        f"own numbers once its constants are put in; {len(otherwise)} are read otherwise than printed, and "
        "CISPO's mask is read as a cap on the ratio.",
        when=held,
    )
    claim.finds(
        "Read literally, GPG and CISPO would never learn from losers.",
        when=bool((literal.gpg == 0).all() and (literal.cispo == 0).all()),
    )
    claim.finds(
        f"Pruned as printed, CPPO selects {1 - same.value:.0%} of the outputs otherwise.",
        when=same.holds is False,
    )
    claim.finds(
        f"GCPO as printed counts an output once for each of its tokens ({times.value:.1f} times on average).",
        when=times.value > 1,
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """A panel for each method: the weight of a token over its ratio and its advantage."""
    figure.set_size_inches(7, 6)
    panels = plotting.panels(figure, 4, 5, sharex=True, sharey=True)
    for axes, name in zip(panels, SHOWN, strict=True):
        shown = data["maps"].weight.sel(shown=name)
        mesh = axes.pcolormesh(
            RATIOS,
            LEVELS,
            shown,
            cmap=plotting.DIVERGING,
            vmin=-3,
            vmax=3,
            shading="nearest",
            rasterized=True,
        )
        axes.axvline(1, color="0.35", lw=0.6, ls=":")
        axes.axhline(0, color="0.35", lw=0.6, ls=":")
        axes.set_title(TITLES.get(name, name.upper()))
        axes.set(xscale="log", xticks=[0.25, 0.5, 1, 2, 4], yticks=[-2, 0, 2])
        axes.set_xticklabels(["¼", "½", "1", "2", "4"])
        axes.minorticks_off()
    for axes, label in zip(panels[::5], ("Table 1", "Table 1", "trajectory ratio", "others"), strict=True):
        axes.set_ylabel(f"{label}\nadvantage A")
    for axes in panels[-5:]:
        axes.set_xlabel("ratio of its tokens")
    bar = figure.colorbar(mesh, ax=panels, shrink=0.5, pad=0.01, extend="both")
    bar.set_label("weight of a token's score (1: live at ratio 1, A = 1)")
    figure.suptitle(
        "What a token's score is multiplied by. White: no gradient. Outputs of four tokens, no penalty"
    )
