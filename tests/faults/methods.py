"""Faults in the slots of a method."""

from __future__ import annotations

from tests.faults.fault import Fault

ADVANTAGES = (
    Fault("ddof adds to the count", "statistics.py", "count - ddof, 0", "count + ddof, 0", "test_statistics"),
    Fault(
        "ties keep rounding noise",
        "statistics.py",
        "return jnp.where(tied(x, weight, axes), 0, deviation)",
        "return deviation + 1e-9",
        "test_statistics",
    ),
    Fault(
        "the mean forgets multiplicities",
        "statistics.py",
        "divide(total(x, weight, axes), kernels.total(weight, axes))",
        "divide(total(x, jnp.sign(weight), axes), kernels.total(jnp.sign(weight), axes))",
        "test_statistics",
    ),
    Fault(
        "leave-one-out without its factor",
        "parts/advantages.py",
        "* divide(size, jnp.maximum(size - 1, 0))",
        "* divide(size, size)",
        "test_methods",
    ),
    Fault(
        "a lone success is divided by what is added",
        "parts/others.py",
        "jnp.where(scale > 0, scale + self.eps, 1)",
        "scale + self.eps",
        "test_parts_others",
    ),
    Fault(
        "the others' spread counts the row itself",
        "parts/others.py",
        "jnp.where(weight < 1.5, 0, weight - 1) * z",
        "jnp.where(weight < 1.5, 0, weight) * z",
        "test_parts_others",
    ),
    Fault(
        "the length-weighted mean forgets lengths",
        "parts/advantages.py",
        "centred(rewards, rollout.multiplicity * lengths(rollout), GROUP_AXES)",
        "centred(rewards, rollout.multiplicity, GROUP_AXES)",
        "test_methods",
    ),
    Fault(
        "the added constant is left out",
        "parts/advantages.py",
        "self.scale(rollout, rewards) + self.eps",
        "self.scale(rollout, rewards)",
        "test_golden",
    ),
    Fault(
        "whitening does not centre",
        "parts/returns.py",
        "deviation = centred(inner, weight, axes)",
        "deviation = inner",
        "test_methods",
    ),
    Fault(
        "returns run forwards",
        "parts/returns.py",
        "start, swept, reverse=True)",
        "start, swept)",
        "test_parts",
    ),
    Fault(
        "length-corrected rewards are not",
        "parts/shaping.py",
        "divide(self.inner(rollout), lengths(rollout))",
        "self.inner(rollout)",
        "test_parts",
    ),
)

GAINS = (
    Fault(
        "the clip holds losers on the wrong side",
        "parts/gains.py",
        """            high=(ratio > 1 + self.high) & (advantages > 0),
            low=(ratio < 1 - self.low) & (advantages < 0),
        )

    def __call__(self, at: Evaluation) -> Array:
        ratio = exponential(at.log_ratio)
        out = self.clip_mask(ratio, at.advantages)
        bound""",
        """            high=(ratio > 1 + self.high) & (advantages > 0),
            low=(ratio < 1 - self.low) & (advantages > 0),
        )

    def __call__(self, at: Evaluation) -> Array:
        ratio = exponential(at.log_ratio)
        out = self.clip_mask(ratio, at.advantages)
        bound""",
        "test_parts",
    ),
    Fault(
        "CISPO's weight is differentiated",
        "parts/gains.py",
        "jax.lax.stop_gradient(bounded) * at.advantages * at.logp",
        "bounded * at.advantages * at.logp",
        "test_methods",
    ),
    Fault(
        "GSPO's mean forgets the mask",
        "parts/ratios.py",
        "length = jnp.sum(rollout.mask, 2, keepdims=True)\n    return divide",
        "length = jnp.ones_like(gap[:, :, :1]) * gap.shape[2]\n    return divide",
        "test_methods",
    ),
    Fault(
        "the trajectory ratio counts masked tokens",
        "parts/ratios.py",
        "gap = jnp.where(rollout.mask > 0, _clamped(logp - rollout.old_logp, self.clamp), 0)",
        "gap = _clamped(logp - rollout.old_logp + 0.1, self.clamp)",
        "test_methods",
    ),
    Fault(
        "the drift mask spares losers",
        "parts/corrections.py",
        "(at.advantages >= 0) | (drift <= self.threshold)",
        "(at.advantages <= 0) | (drift <= self.threshold)",
        "test_methods",
    ),
    Fault(
        "the sampler's mismatch is upside down",
        "parts/sampler.py",
        "ratio(rollout._replace(old_logp=rollout.sampling_logp), rollout.old_logp)",
        "ratio(rollout, rollout.sampling_logp)",
        "test_parts",
    ),
    Fault(
        "corrections are differentiated",
        "surrogate.py",
        "gain = gain * jax.lax.stop_gradient(factor)",
        "gain = gain * factor",
        "test_parts",
    ),
)

PENALTIES = (
    Fault(
        "k3 of the other direction",
        "parts/penalties.py",
        "exponential(x) - x - 1",
        "exponential(-x) + x - 1",
        "test_parts",
    ),
    Fault(
        "the anchor is the old policy",
        "parts/penalties.py",
        "reference(at.rollout.ref_logp, self.coef, at.logp)",
        "reference(at.rollout.old_logp, self.coef, at.logp)",
        "test_simulation",
    ),
    Fault(
        "the direct penalty's ratio is detached",
        "parts/penalties.py",
        "exponential(self.ratio(at.rollout, at.logp)) * divergence",
        "jax.lax.stop_gradient(exponential(self.ratio(at.rollout, at.logp))) * divergence",
        "test_parts",
    ),
    Fault(
        "the KL in the reward is added",
        "parts/shaping.py",
        "self.inner(rollout) - self.coef *",
        "self.inner(rollout) + self.coef *",
        "test_methods",
    ),
    Fault(
        "penalties count as gains",
        "surrogate.py",
        "terms = terms - weights * penalty",
        "terms = terms + weights * penalty",
        "test_parts",
    ),
)

REDUCTIONS = (
    Fault(
        "DAPO's denominator is the group's",
        "parts/reductions.py",
        "divide(counted, jnp.sum(counted, (0, 1, 2), keepdims=True))",
        "divide(counted, jnp.sum(counted, (1, 2), keepdims=True))",
        "test_parts",
    ),
    Fault(
        "sequences are not divided by their length",
        "parts/reductions.py",
        "divide(_counted(rollout), length) * _share(rollout)",
        "_counted(rollout) * _share(rollout)",
        "test_parts",
    ),
    Fault(
        "dynamic sampling keeps tied groups",
        "parts/reductions.py",
        "jnp.where(flat, 0, rollout.multiplicity)",
        "rollout.multiplicity",
        "test_parts",
    ),
    Fault(
        "micro-batches are summed, not averaged",
        "parts/reductions.py",
        "return jnp.concatenate(parts) / self.count",
        "return jnp.concatenate(parts)",
        "test_parts",
    ),
    Fault(
        "weights forget multiplicities",
        "parts/reductions.py",
        "return rollout.mask * rollout.multiplicity[:, :, None]",
        "return rollout.mask * jnp.sign(rollout.multiplicity)[:, :, None]",
        "test_parts",
    ),
)
