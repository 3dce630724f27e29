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
        "place = jnp.maximum(jnp.cumsum(live, 0) - 1, 0)",
        "place = jnp.cumsum(jnp.ones_like(asked), 0) - 1",
        "test_transformer",
    ),
    Fault(
        "the cache shows what is not there yet",
        "policies/transformer.py",
        "self._bias_at(bias, (steps <= step)[None])",
        "self._bias_at(bias, (steps >= 0)[None])",
        "test_transformer",
    ),
    Fault(
        "padding is read",
        "policies/transformer.py",
        "jnp.broadcast_to(asked, ",
        "jnp.broadcast_to(0 * asked, ",
        "test_transformer",
    ),
    Fault(
        "tokens see those after them",
        "policies/transformer.py",
        "self._bias_at(bias, steps <= steps[:, None])",
        "self._bias_at(bias, steps <= self.horizon + 0 * steps[:, None])",
        "test_transformer",
    ),
    Fault(
        "a key's answers read another answer's prompt",
        "policies/attention.py",
        "jnp.repeat(before, new.shape[3] // before.shape[3], 3)",
        "jnp.tile(before, new.shape[3] // before.shape[3])",
        "test_transformer",
    ),
    Fault(
        "a product of pairs is pulled back over the wrong rows",
        "policies/products.py",
        "first, second = (ct, 1), (a, _free(over[0]))",
        "first, second = (ct, 2), (a, _free(over[0]))",
        "test_products",
    ),
    Fault(
        "training problems are held out",
        "diagnostics.py",
        "task.held_out_prompts(uniforms(",
        "task.prompts(uniforms(",
        "test_networks",
    ),
)
