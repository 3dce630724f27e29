"""Where two methods differ: slot by slot in words, and in numbers on a random batch."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.methods import effective
from grpo_jax.part import subparts
from grpo_jax.presets.consequences import USUAL, Settings, consequences
from grpo_jax.presets.registry import parse
from grpo_jax.surrogate import Method, advantages, loss
from grpo_jax.types import Array, Rollout


class Comparison(NamedTuple):
    """Two methods on one random batch."""

    slots: dict[str, tuple[str, str]]
    """Slot -> its two contents, where they differ; a penalty whose coefficient is 0 is none."""
    parts: dict[str, str]
    """Name of every part in those slots -> what it does, in a line."""
    losses: tuple[float, float]
    gradient: float
    """‖∇a − ∇b‖ / max(‖∇a‖, ‖∇b‖), gradients with respect to log π_θ of the tokens; 0 where both vanish."""
    cosine: float
    """Cosine of the two gradients; NaN where one vanishes."""
    advantage: float
    """Greatest difference of two advantages."""


def random_batch(
    *, seed: int = 0, prompts: int = 4, group: int = 8, tokens: int = 10
) -> tuple[Rollout, Array]:
    """Graded rewards and ragged outputs, a fifth of a nat off-policy, and log π_θ of the tokens.

    Tokens and log-probabilities [P, N, T], rewards [P, N, 1].
    """
    rng = np.random.default_rng(seed)
    shape = (prompts, group, tokens)
    length = rng.integers(1, tokens + 1, shape[:2])
    logp = -rng.exponential(1.0, shape)

    def near(spread: float) -> Array:
        return jnp.asarray(np.minimum(logp + spread * rng.normal(size=shape), -1e-3))

    rollout = Rollout(
        prompts=jnp.arange(prompts),
        tokens=jnp.asarray(rng.integers(0, 8, shape)),
        mask=jnp.asarray((np.arange(tokens) < length[:, :, None]).astype(float)),
        rewards=jnp.asarray(rng.choice([0.0, 0.5, 1.0], (*shape[:2], 1))),
        multiplicity=jnp.ones(shape[:2]),
        sampling_logp=near(0.3),
        old_logp=near(0.2),
        ref_logp=near(0.5),
        entropy=jnp.asarray(rng.gamma(2.0, 0.3, shape)),
        baseline=jnp.full(shape[:2], 0.5),
        truncated=jnp.asarray((length == tokens).astype(float)),
    )
    return rollout, jnp.asarray(logp)


def compare(a: Method, b: Method, *, seed: int = 0) -> Comparison:
    """The slots in which two methods differ, and by how much their numbers do on ``random_batch``."""
    rollout, logp = random_batch(seed=seed)
    slots: dict[str, tuple[str, str]] = {}
    parts: dict[str, str] = {}
    for field in dataclasses.fields(Method):
        slot = field.name
        if effective(a, slot) != effective(b, slot):
            texts = [effective(method, slot, defaults=True) for method in (a, b)]
            slots[slot] = (texts[0], texts[1])
            held = (getattr(method, slot) for method in (a, b) if effective(method, slot) != "none")
            kinds = {type(part) for top in held for part in subparts(top)}
            parts |= {kind.__name__: _line(kind) for kind in sorted(kinds, key=lambda kind: kind.__name__)}
    (loss_a, grad_a), (loss_b, grad_b) = (
        jax.value_and_grad(loss, argnums=2)(method, rollout, logp) for method in (a, b)
    )
    norms = jnp.linalg.norm(grad_a.ravel()), jnp.linalg.norm(grad_b.ravel())
    largest = float(jnp.maximum(*norms))
    gap = float(jnp.linalg.norm((grad_a - grad_b).ravel()))
    product = float(norms[0] * norms[1])
    where = rollout.mask > 0
    apart = jnp.where(where, advantages(a, rollout) - advantages(b, rollout), 0)
    return Comparison(
        slots=slots,
        parts=parts,
        losses=(float(loss_a), float(loss_b)),
        gradient=gap / largest if largest else 0.0,
        cosine=float(jnp.sum(grad_a * grad_b)) / product if product else float("nan"),
        advantage=float(jnp.max(jnp.abs(apart))),
    )


def _line(kind: type) -> str:
    """The first line of a class's documentation."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def diff(a: str, b: str, *, seed: int = 0, at: Settings = USUAL) -> str:
    """A table of where two named methods differ (see ``parse`` for names), ready to print.

    What a switch means is told with its number at these settings, and the claim that shows it.
    """
    left_method, right_method = parse(a), parse(b)
    found = compare(left_method, right_method, seed=seed)
    lines = []
    for slot, (left, right) in found.slots.items():
        lines += [slot, f"  {a:<16} {left}", f"  {b:<16} {right}"]
    if not lines:
        lines = ["no slot differs"]
    lines += [f"  where {name}: {line}" for name, line in found.parts.items() if line]
    told = consequences(left_method, right_method, at)
    if told:
        lines.append(
            f"what that means, in groups of {at.group_size} with answers of 1 to {at.longest:g} tokens"
        )
    for switch, sides, claim in told:
        lines += [f"  {switch} ({claim})", f"    {a:<16} {sides[0]}", f"    {b:<16} {sides[1]}"]
    lines += [
        "on a random batch",
        f"  loss             {found.losses[0]:.6g} and {found.losses[1]:.6g}",
        f"  gradient         differs by {found.gradient:.3g} of its norm, cosine {found.cosine:.6f}",
        f"  advantages       differ by at most {found.advantage:.3g}",
        "optimizer and loop (group size, inner steps, minibatches) are no part of a method, so they are not "
        "compared: Config(optimizer=..., loop=...) takes them",
    ]
    return "\n".join(lines)
