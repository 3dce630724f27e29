"""Transformers as policies: scored whole, sampled token by token with a cache."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.decoding import Decoding
from grpo_jax.part import part, static
from grpo_jax.policies.attention import NOWHERE, Memory, Transformer, joined
from grpo_jax.policies.autoregressive import Autoregressive, asked_tokens
from grpo_jax.sequences import Sequences, inverse_cdf
from grpo_jax.types import Array

FLOATS = ("float32", "bfloat16", "float64")


@part
class TransformerPolicy(Autoregressive):
    """π_θ(y_t|x, y_<t) = softmax(z_θ(x, y_<t))_{y_t}: a decoder-only transformer that reads x, then answers.

    Prompts are int [P, Q] tokens, padded on the left with −1; the answer's first token is predicted at the
    prompt's last. Or they are ids 0..C−1, int [P], each an input token of its own. Parameters are a flax
    dictionary; where the answers are few enough to list, everything that trees can do applies.

    Args:
      space: the answers: vocabulary, horizon, EOS, tokens forbidden at a step.
      contexts: C, where prompts are ids; None where they are tokens of the same vocabulary.
      prompt_length: Q.
      layers: blocks of attention and network.
      width: D, of the residual stream.
      heads: of attention; they divide D.
      learned_positions: an embedding for each place instead of rotary positions.
      tied: logits from the token embedding's own rows.
      dtype: what is computed in: "float32", "bfloat16" or "float64"; None is the precision in use.
      storage: what parameters are stored and updated in; None is the precision in use.
      start: parameters to start from (``warm_start.fit``, ``checkpoints.load``); None is random ones, other
        ones for each seed.
      decoding: as in ``ActionPolicy``.
    """

    space: Sequences = static()
    contexts: int | None = static(None, low=1)
    prompt_length: int = static(1, low=1)
    layers: int = static(2, low=1)
    width: int = static(64, low=1)
    heads: int = static(4, low=1)
    learned_positions: bool = static(False)
    tied: bool = static(False)
    dtype: str | None = static(None)
    storage: str | None = static(None)
    start: Any = None
    decoding: Decoding | None = None

    def check(self) -> None:
        """Widths divide, names of types are known, and the start is this architecture's."""
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        if not self.learned_positions and (self.width // self.heads) % 2:
            raise ValueError(
                f"a head of width {self.width // self.heads} cannot be rotated in pairs; use an even "
                "width, or learned_positions=True"
            )
        if self.contexts is not None and self.prompt_length != 1:
            raise ValueError(
                f"contexts={self.contexts} says that prompts are ids, prompt_length="
                f"{self.prompt_length} that they are tokens; give one of them"
            )
        for name in ("dtype", "storage"):
            value = getattr(self, name)
            if value is not None and value not in FLOATS:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(FLOATS)}")
        if self.start is not None:
            self._check_start()

    @property
    def numbers_per_token(self) -> int:
        """Activations that the gradient reads again.

        A layer's are about 24·D, three scores for each key and head, and an answer's keys and values twice.
        """
        keys = self.prompt_length + self.horizon - 1
        own = 24 * self.width + 3 * self.heads * keys + 4 * self.width * keys // self.horizon
        return self.layers * own + 4 * self.space.vocab

    def _check_start(self) -> None:
        wanted = jax.tree_util.tree_leaves_with_path(jax.eval_shape(self._fresh, jax.random.key(0)))
        found = jax.tree_util.tree_leaves_with_path(self.start)
        shapes, given = ({jax.tree_util.keystr(k): jnp.shape(v) for k, v in t} for t in (wanted, found))
        for name in sorted(shapes | given):
            if shapes.get(name) != given.get(name):
                own, other = (s.get(name, "nothing") for s in (shapes, given))
                raise ValueError(
                    f"start is of another architecture: {name} has shape {other}, and this one needs {own}"
                )

    @property
    def _model(self) -> Transformer:
        standard = jax.dtypes.canonicalize_dtype(float)
        return Transformer(
            vocab=self.space.vocab,
            inputs=self.space.vocab + (self.contexts or 0),
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            positions=(self.prompt_length + self.horizon - 1) if self.learned_positions else 0,
            tied=self.tied,
            dtype=jnp.dtype(self.dtype or standard),
            storage=jnp.dtype(self.storage or standard),
        )

    def _fresh(self, key: Array) -> Any:
        one = jnp.zeros((1, 1), int)
        return self._model.init(key, one, one, jnp.zeros((1, 1, 1)))

    def init(self, key: Array) -> Any:
        """Where training starts: ``start``, else random weights from the key.

        A tree of arrays, in its network's shapes.
        """
        if self.start is None:
            return self._fresh(key)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, self._model.storage), self.start)

    def _read(self, params: Any, prompts: Array) -> tuple[tuple[Memory, ...] | None, Array, Array, Array]:
        """Keys and values of all but the prompts' last tokens, their bias [Q − 1, P].

        And the last token [P] and its position [P].
        """
        asked = asked_tokens(self, prompts).T
        live = asked >= 0
        place = jnp.maximum(jnp.cumsum(live, 0) - 1, 0)
        length = self.prompt_length - 1
        seen = live[:length]
        if not length:
            return None, self._bias(seen), asked[-1], place[-1]
        before = np.tril(np.ones((length, length), bool))[:, :, None] & seen
        memories: Any = self._model.apply(params, asked[:length], place[:length], self._bias(before))[1]
        return memories, self._bias(seen), asked[-1], place[-1]

    def _bias(self, seen: Any) -> Array:
        return jnp.where(seen, 0, NOWHERE).astype(self._model.dtype)

    def _bias_at(self, asked: Array, seen: Any) -> Array:
        """[T, Q − 1 + S, M] of the prompts' keys [Q − 1, M], and of the answers' ``seen`` [T, S]."""
        near = self._bias(seen)[:, :, None]
        both = [jnp.broadcast_to(asked, (near.shape[0], *asked.shape)), jnp.repeat(near, asked.shape[1], 2)]
        return jnp.concatenate(both, 1)

    def token_logits(self, params: Any, prompts: Array, tokens: Array) -> Array:
        """[P, N, T, V] of given answers, all steps at once."""
        count, group, length = tokens.shape
        memories, *given = self._read(params, prompts)
        bias, last, place = (jnp.repeat(x, group, -1) for x in given)
        answers = tokens.reshape(-1, length).T
        read = jnp.concatenate([last[None], answers[:-1]], 0)
        steps = jnp.arange(length)
        bias = self._bias_at(bias, steps <= steps[:, None])
        logits = self._model.apply(params, read, place + steps[:, None], bias, memories)[0]
        return logits.transpose(2, 1, 0).reshape(count, group, length, -1)

    def sample(self, params: Any, prompts: Array, uniforms: Array) -> tuple[Array, Array]:
        """See ``types.Policy``: one scan over the steps, each reading keys and values of earlier ones.

        [P, N, T].
        """
        model, allowed = self._model, jnp.asarray(self.space.allowed)
        count, group = uniforms.shape[:2]
        memories, *given = self._read(params, prompts)
        bias, last, place = (jnp.repeat(x, group, -1) for x in given)
        steps, asked = jnp.arange(self.horizon), self.prompt_length - 1
        empty = jnp.zeros((self.heads, self.width // self.heads, self.horizon, count * group), model.dtype)
        held = (Memory(empty, empty),) * self.layers
        if memories is not None:
            held = jax.tree.map(lambda old, new: joined(old, new, None), memories, held)

        def next_token(carry: Any, given: Any) -> Any:
            held, token = carry
            step, uniform = given
            seen = self._bias_at(bias, (steps <= step)[None])
            logits, held = model.apply(params, token[None], (place + step)[None], seen, held, asked + step)
            logp = self.normalised(logits.transpose(2, 1, 0)[None], allowed[step][None])
            token = inverse_cdf(jnp.exp(logp[:, :, 0]), uniform[None])[0]
            return (held, token), token

        _, drawn = jax.lax.scan(
            next_token, (held, last.astype(int)), (steps, uniforms.reshape(-1, self.horizon).T)
        )
        return self.space.ended(drawn.T.reshape(count, group, -1))
