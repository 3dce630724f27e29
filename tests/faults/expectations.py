"""Faults in exact sums, in draws, and in what is cut off or drawn anew."""

from __future__ import annotations

from tests.faults.fault import Fault

EXACT = (
    Fault(
        "rewards are computed again by each that reads them, and equal ones do not tie",
        "surrogate.py",
        "rewards = materialize(_fitting(",
        "rewards = (lambda given, everywhere: given)(_fitting(",
        "test_ties",
    ),
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
