"""Faults in who samples, and in networks."""

from __future__ import annotations

from tests.faults.fault import Fault

SAMPLER = (
    Fault(
        "long answers are no older",
        "ages.py",
        "self.started(ages - self.waits(lengths)[:, :, None])",
        "self.started(ages)",
        "test_ages",
    ),
    Fault(
        "answers that are lost are drawn all the same",
        "ages.py",
        "mass = jnp.where(alive, mass, 0)",
        "mass = jnp.where(alive, mass, mass)",
        "test_ages",
    ),
    Fault(
        "a filter forgets the one before",
        "decoding.py",
        "kept = kept & _KEEPS[name](seen, threshold, axis)",
        "kept = _KEEPS[name](seen, threshold, axis)",
        "test_decoding test_behavior",
    ),
    Fault(
        "the engine leaves out its temperature",
        "decoding.py",
        "jnp.where(self.kept(logits, axis), logits / self.temperature, NEVER)",
        "jnp.where(self.kept(logits, axis), logits, NEVER)",
        "test_decoding test_behavior",
    ),
    Fault(
        "the proximal weight stands at the wrong policy",
        "behavior.py",
        "(1 - self.weight) * old_logp + self.weight * sampling_logp",
        "self.weight * old_logp + (1 - self.weight) * sampling_logp",
        "test_behavior",
    ),
    Fault(
        "kept mass upside down",
        "sampling.py",
        "    return exponential(free - kept)",
        "    return exponential(kept - free)",
        "test_behavior",
    ),
)

NETWORKS = (
    Fault(
        "rotary positions are mirrored",
        "policies/attention.py",
        "[a * cos - b * sin, a * sin + b * cos]",
        "[a * cos + b * sin, a * sin + b * cos]",
        "test_transformer",
    ),
    Fault(
        "padding is a place",
        "policies/transformer.py",
        "place = jnp.maximum(jnp.cumsum(live, 1) - 1, 0)",
        "place = jnp.cumsum(jnp.ones_like(asked), 1) - 1",
        "test_transformer",
    ),
    Fault(
        "the cache shows what is not there yet",
        "policies/transformer.py",
        "self._bias(steps <= step)[None]",
        "self._bias(steps >= 0)[None]",
        "test_transformer",
    ),
    Fault(
        "padding is read",
        "policies/attention.py",
        "seen + bias_PxQ[:, None, None, None]",
        "seen + 0 * bias_PxQ[:, None, None, None]",
        "test_transformer",
    ),
    Fault(
        "tokens see those after them",
        "policies/transformer.py",
        "self._bias(steps <= steps[:, None])",
        "self._bias(steps <= self.horizon + 0 * steps[:, None])",
        "test_transformer",
    ),
    Fault(
        "training problems are held out",
        "diagnostics.py",
        "task.held_out_prompts(uniforms(",
        "task.prompts(uniforms(",
        "test_networks",
    ),
)
