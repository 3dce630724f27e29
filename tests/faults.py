"""Planted faults: a piece of the package, what stands there instead, and the fast tests that must notice.

``test_mutations.py`` plants them one at a time. What a fault replaces must stand in its file exactly once, so
that the list cannot go stale unseen.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One planted fault."""

    what: str
    """In words."""
    file: str
    """Below ``grpo_jax/``."""
    old: str
    new: str
    tests: str
    """Test files (below ``tests/``, without their ending), one of which must fail."""


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
        "divide(_counted(rollout), length * _entries(rollout))",
        "divide(_counted(rollout), _entries(rollout))",
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

EXACT = (
    Fault(
        "the last group of a sum in chunks is dropped",
        "exact/expectation.py",
        "live = (np.arange(chunks * size) < len(every.counts))",
        "live = (np.arange(chunks * size) < len(every.counts) - (chunks > 1))",
        "test_enumeration",
    ),
    Fault(
        "groups are weighted without their multinomial",
        "exact/groups.py",
        "jnp.exp(table[group_size] - jnp.sum(table[counts]) - distance)",
        "jnp.exp(-distance)",
        "test_enumeration",
    ),
    Fault(
        "outcomes have the reference's probability",
        "exact/outcomes.py",
        "jnp.sum((old if drawn is None else drawn).logp, 2)",
        "jnp.sum((ref if drawn is None else drawn).logp, 2)",
        "test_enumeration",
    ),
    Fault(
        "cells ignore lengths",
        "exact/groups.py",
        "if reads_lengths(method):",
        "if False:",
        "test_enumeration test_exact_cells",
    ),
    Fault(
        "the law is about zero, not the mean",
        "exact/law.py",
        "here.cotangent(config, group, advantage) - slope",
        "here.cotangent(config, group, advantage)",
        "test_exact_law",
    ),
    Fault(
        "a preference is among one's own group",
        "exact/preference.py",
        "group_size=size - 1",
        "group_size=size",
        "test_exact_law",
    ),
)

DRAWS = (
    Fault(
        "every step draws the same",
        "random.py",
        "jnp.asarray(step, jnp.uint32), position",
        "jnp.uint32(0), position",
        "test_random",
    ),
    Fault(
        "streams share their counters",
        "random.py",
        "position = position + jnp.uint32(int(stream) << _STREAM_BITS)",
        "position = position + jnp.uint32(0)",
        "test_random",
    ),
    Fault(
        "seeds share their draws",
        "random.py",
        "(root.astype(jnp.uint32), seed)",
        "(root.astype(jnp.uint32), jnp.zeros_like(seed))",
        "test_random",
    ),
    Fault(
        "a reward's noise is the token's",
        "collectors.py",
        "Stream.REWARD, group",
        "Stream.TOKEN, group",
        "test_simulation",
    ),
    Fault(
        "groups come from the current policy",
        "sampling.py",
        "return Drawn(config.policy, state.old_params)",
        "return Drawn(config.policy, state.params)",
        "test_simulation",
    ),
    Fault(
        "an inverse CDF that is off by one",
        "sequences.py",
        "count(probabilities.shape[2] - 1,",
        "count(probabilities.shape[2] - 2,",
        "test_sequences test_policies",
    ),
)

OPTIMIZERS = (
    Fault(
        "decay is coupled",
        "optimizers.py",
        """            scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay),""",
        """            optax.add_decayed_weights(self.weight_decay),
            scale_by_adam(self.b1, self.b2, self.eps),""",
        "test_optimizers test_simulation",
    ),
    Fault(
        "decay reads the batch's start",
        "steps.py",
        "optimizers.step(config.optimizer, grads, opt_state, params, runs=runs)",
        "optimizers.step(config.optimizer, grads, opt_state, state.params, runs=runs)",
        "test_simulation",
    ),
    Fault(
        "clipping a norm mixes runs",
        "optimizers.py",
        """    max_norm: Number = number(1.0, low=0.0, open_low=True)
    reduces: ClassVar[bool] = True""",
        """    max_norm: Number = number(1.0, low=0.0, open_low=True)
    reduces: ClassVar[bool] = False""",
        "test_optimizers",
    ),
    Fault(
        "cosine decay ends elsewhere",
        "optimizers.py",
        "(1 - self.end) * 0.5",
        "(1 - self.end) * 0.25",
        "test_optimizers test_simulation",
    ),
)

LOOP = (
    Fault(
        "the old policy is refreshed an iteration late",
        "train.py",
        "refresh = done % config.loop.refresh_every == 0",
        "refresh = state.step % config.loop.refresh_every == 0",
        "test_simulation",
    ),
    Fault(
        "every pass takes the minibatches of the first",
        "steps.py",
        "rows = jnp.argsort(order, axis=1)",
        "rows = jnp.argsort(order[:1] + 0 * order, axis=1)",
        "test_simulation",
    ),
    Fault(
        "a frozen gradient moves along",
        "steps.py",
        "point = state.old_params if at_old else params",
        "point = params",
        "test_train",
    ),
    Fault(
        "a thinned record is of the first iteration",
        "train.py",
        "lambda i: i == plan.every - 1",
        "lambda i: i == 0",
        "test_measures test_train",
    ),
    Fault("an average begins one late", "train.py", "(i + 1 >= first)", "(i >= first)", "test_measures"),
    Fault(
        "the start is the state after the first step",
        "train.py",
        "first = _at_start(config, state, plan)",
        "first = _at_start(config, after, plan)",
        "test_measures",
    ),
    Fault(
        "the KL to the reference runs the other way",
        "measures.py",
        "diagnostics.kl(view.config.policy, state.params, state.ref_params, view.prompts)",
        "diagnostics.kl(view.config.policy, state.ref_params, state.params, view.prompts)",
        "test_simulation",
    ),
)

SWEEPS = (
    Fault(
        "runs are settled by the first setting",
        "sweeps/program.py",
        "column[index[i]]",
        "column[0 * index[i]]",
        "test_sweep",
    ),
    Fault(
        "settings change fastest, seeds slowest",
        "sweeps/work.py",
        "np.unravel_index(run // len(self.seeds), sizes)",
        "np.unravel_index(run % self.settings, sizes)",
        "test_sweep",
    ),
    Fault(
        "axes are labelled in reverse",
        "sweeps/dataset.py",
        "shape = [axis.size for axis in grid] + [len(seeds)]",
        "shape = [axis.size for axis in variants] + [axis.size for axis in axes][::-1] + [len(seeds)]",
        "test_sweep",
    ),
    Fault(
        "the root is forgotten",
        "sweeps/program.py",
        "jnp.uint32(root)",
        "jnp.uint32(0)",
        "test_sweep",
    ),
    Fault(
        "a second program keeps the first one's numbers",
        "sweeps/program.py",
        "leaves = jax.tree.map(_array, config)",
        "leaves = _kept.setdefault(jax.tree.structure(config), jax.tree.map(_array, config))",
        "test_layout test_sweep",
    ),
    Fault(
        "an average is divided by every iteration",
        "train.py",
        "count = int(np.sum(plan.iterations(iterations) >= first))",
        "count = iterations",
        "test_measures",
    ),
)

RESUME = (
    Fault(
        "a part is taken under any name",
        "sweeps/storage.py",
        "if place != [str(variant), str(part)]:",
        "if False:",
        "test_storage",
    ),
    Fault(
        "a part of another sweep is read back",
        "sweeps/storage.py",
        'self._refuse_other(_manifest_in(data.attrs, path), f"{path} belongs to")',
        "pass",
        "test_storage",
    ),
    Fault(
        "the manifest forgets the seeds",
        "sweeps/work.py",
        '"seeds": digest(work.seeds.tolist()),',
        "",
        "test_sweep",
    ),
    Fault(
        "a resumed sweep computes every part again",
        "sweeps/runner.py",
        "done = store.read(variant, first // shape.runs) if store else None",
        "done = None",
        "test_sweep",
    ),
)

ANEW = (
    Fault(
        "cells ignore what is cut off",
        "exact/groups.py",
        "if reads_truncation(method) and rollout.truncated is not None:",
        "if False:",
        "test_truncation",
    ),
    Fault(
        "an end in the last place is cut off",
        "sequences.py",
        "& (tokens[:, :, -1] != self.eos), 1.0, 0.0)",
        ", 1.0, 0.0)",
        "test_truncation",
    ),
    Fault(
        "what is cut off votes",
        "parts/truncation.py",
        "self.inner(rollout._replace(multiplicity=voters), rewards)",
        "self.inner(rollout, rewards)",
        "test_truncation",
    ),
    Fault(
        "a tied group is kept at every try",
        "refill.py",
        "jnp.where(same, ties ** (self.tries - 1), self.price(ties))",
        "jnp.where(same, 1.0, self.price(ties))",
        "test_refill",
    ),
    Fault(
        "the last try is kept, not the first that is mixed",
        "refill.py",
        "jnp.argmin(same, 1)",
        "self.tries - 1 - jnp.argmin(same[:, ::-1], 1)",
        "test_refill",
    ),
    Fault(
        "groups drawn anew cost nothing",
        "measures.py",
        "view.config.loop.group_size * jnp.sum(drawn, 0)",
        "view.config.loop.group_size * jnp.sum(jnp.ones_like(drawn), 0)",
        "test_refill",
    ),
)

FAULTS = (
    *ADVANTAGES,
    *GAINS,
    *PENALTIES,
    *REDUCTIONS,
    *EXACT,
    *DRAWS,
    *OPTIMIZERS,
    *LOOP,
    *SWEEPS,
    *RESUME,
    *ANEW,
)
