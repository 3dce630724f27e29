"""Sequences of three tokens that drift alike at every prefix, and gradients of groups sampled before a drift.

Every ratio and every clip by Clip's two bounds is a setting of one program; see ``distances``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import grpo_jax as gj
from experiments.problems.weights import LengthPower
from grpo_jax.methods import SHIFT
from grpo_jax.part import number, part
from grpo_jax.parts.gains import Clip, Gain
from grpo_jax.theory import variance
from grpo_jax.types import Array, Number, Rollout

OLD = np.array([0.3, 0.4, 0.3])
DRIFTS = {
    "towards winners": (1.0, 0.0, -1.0),
    "towards neither": (0.5, -1.0, 0.5),
    "towards losers": (-1.0, 0.0, 1.0),
}
HIGH, GROUP = 0.2, 8


def drifted(direction: Any, chi2: float) -> np.ndarray:
    """OLD moved along a direction until it is this far in χ²."""
    direction = np.asarray(direction)
    return OLD + direction * np.sqrt(chi2 / np.sum(direction**2 / OLD))


SAMPLED = ("towards winners", "towards losers")
"""Drifts of the sampled gradients, one the other's reverse."""
AWAY = {name: drifted(DRIFTS[name], 0.1) for name in SAMPLED}
"""Law at θ of each."""


def winning(horizon: int, *, tie: float) -> np.ndarray:
    """[H] reward 1 where token 0 outnumbers token 2, ``tie`` where they are equal."""
    counts = variance.token_counts(horizon, 3)
    return np.where(counts[:, 0] == counts[:, 2], tie, counts[:, 0] > counts[:, 2])


@part
class Mixed:
    """log s_t = token·log ρ_t + whole·Σ_t log ρ_t: ``Token``, ``Trajectory``, ``SequenceMean`` by numbers."""

    token: Number = number(1.0, low=0.0)
    whole: Number = number(0.0, low=0.0)

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        gap = jnp.where(rollout.mask > 0, logp - rollout.old_logp, 0)
        return self.token * gap + self.whole * jnp.sum(gap, 2, keepdims=True)


def numbers_of(ratio: str, clip: str, horizon: int, *, clips: bool = True) -> dict[str, float]:
    """What a setting is in the sweep; a ratio differentiated whole stands at T tokens, hence its 1/T."""
    token, whole = {"token": (1.0, 0.0), "trajectory": (0.0, 1.0)}.get(ratio, (0.0, 1 / horizon))
    power = float(ratio == "trajectory" and clip != "upper, truncated score")
    found = {"method.ratio.token": token, "method.ratio.whole": whole, "method.reduction.power": power}
    if not clips:
        return found
    low, high = HIGH if clip == "two-sided" else np.inf, np.inf if clip == "none" else HIGH
    return found | {"clip_low": low, "clip_high": high}


@part
class Jump:
    """An optimizer whose step ends where token 0 has gained ``gain`` at every prefix, and token 2 lost it."""

    gain: Number = number(0.0, low=-0.3, high=0.3)
    reduces: ClassVar[bool] = True

    def transform(self) -> optax.GradientTransformation:
        """A step to a place, whatever the gradient is."""
        law = OLD + self.gain * np.array(DRIFTS["towards winners"])

        def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            return jax.tree.map(lambda at: jnp.log(law).astype(at.dtype) - at, params), state

        return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def by_node(space: gj.Sequences, kinds: np.ndarray) -> np.ndarray:
    """[rows, V] of every node of the tree, from values [N, V] for prefixes that are alike."""
    names = [tuple(counts) for counts in variance.prefixes(space.horizon, 3)]
    nodes = [np.unravel_index(n, (3,) * depth) for depth in range(space.horizon) for n in range(3**depth)]
    counts = [tuple(np.bincount(np.array(node, int), minlength=3)) for node in nodes]
    return kinds[[names.index(count) for count in counts]]


def distances(
    gain: Gain, forms: Iterable[str], ratios: Iterable[str], *, horizon: int, seeds: int, root: int
) -> xr.DataArray:
    """[setting, seed] squared distance of a sampled gradient from its exact mean, over the exact variance.

    Every ratio, form of clip and drift of ``SAMPLED`` is a setting. The first of two steps on a batch goes to
    θ; the second one's gradient is looked at.
    """
    space = gj.Sequences(vocab=3, horizon=horizon)
    chosen = {
        f"{r} ratio, {c}, T = {horizon}, {way}": (r, c, way) for r in ratios for c in forms for way in SAMPLED
    }
    success = winning(horizon, tie=0.0)
    known = {
        name: variance.group_estimate(
            OLD, AWAY[way], success, horizon=horizon, group_size=GROUP, ratio=r, clip=c, low=HIGH, high=HIGH
        )
        for name, (r, c, way) in chosen.items()
    }
    means = np.stack([by_node(space, estimate.mean) for estimate in known.values()])

    @gj.measure("target", labels={"target": list(known)}, per="step")
    def distance(view: gj.measures.StepView) -> Array:
        found = -view.grads[0] * GROUP / (GROUP - 1)
        cross = jnp.einsum("kna,nar->kr", means, found)
        return jnp.sum(found**2, (0, 1)) - 2 * cross + np.sum(means**2, (1, 2))[:, None]

    tokens = space.support[0]
    won = (tokens == 0).sum(1) > (tokens == 2).sum(1)
    config = gj.Config(
        policy=gj.TreePolicy(space=space, logits=np.broadcast_to(np.log(OLD), (1, space.offsets[-1], 3))),
        task=gj.SequenceTable(space=space, table=won[None].astype(float)),
        method=gj.Method(advantage=SHIFT, ratio=Mixed(), gain=gain, reduction=LengthPower()),
        optimizer=Jump(),
        loop=gj.Loop(group_size=GROUP, inner_steps=2),
        expectation=gj.Sampled(),
    )
    settings = {
        name: numbers_of(r, c, horizon, clips=isinstance(gain, Clip))
        | {"optimizer.gain": float(AWAY[way][0] - OLD[0])}
        for name, (r, c, way) in chosen.items()
    }
    paths = tuple(next(iter(settings.values())))
    data = gj.sweep(
        config, {paths: {name: tuple(given.values()) for name, given in settings.items()}},
        seeds=seeds, iterations=1, root=root, record=[], measure={"distance": distance},
    )  # fmt: skip
    at_theta = data.distance.isel(iteration=0, inner_step=1, drop=True).rename({"+".join(paths): "setting"})
    mine = [at_theta.sel(setting=name, target=name, drop=True) / known[name].variance for name in chosen]
    return xr.concat(mine, xr.Variable("setting", list(chosen)), coords="minimal", compat="override")
