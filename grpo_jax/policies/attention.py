"""A small decoder-only transformer: pre-norm, rotary or learned positions, a cache of keys and values.

Letters of shapes: P prompts, N answers to each, T tokens of an answer, Q tokens of a prompt, S keys, V
vocabulary, D width, H heads, K width of a head. All answers of a group read their prompt's keys and values,
which are computed once a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from grpo_jax.types import Array

NOWHERE = -1e30
"""What is added to the score of a key that a query may not see."""


class Memory(NamedTuple):
    """Keys and values of one layer."""

    key_PxNxHxSxK: Array
    value_PxNxHxSxK: Array


class Prefix(NamedTuple):
    """What answers read of their prompts."""

    layers: tuple[Memory, ...]
    """N = 1: one for all answers."""
    bias_PxQ: Array
    """0, and ``NOWHERE`` where a prompt is padded."""


def rotated(x_PxNxHxTxK: Array, position_PxT: Array) -> Array:
    """Rotary position embedding (arXiv:2104.09864): pairs (k, k + K/2) turned by position·10000^(−2k/K).

    x [P, N, H, T, K], positions [P, T].
    """
    half = x_PxNxHxTxK.shape[4] // 2
    rate = 10_000.0 ** (-jnp.arange(half) / half)
    angle = (position_PxT[:, :, None] * rate)[:, None, None]
    cos, sin = jnp.cos(angle).astype(x_PxNxHxTxK.dtype), jnp.sin(angle).astype(x_PxNxHxTxK.dtype)
    a, b = x_PxNxHxTxK[..., :half], x_PxNxHxTxK[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], 4)


def by_rows(layer: Callable[[Array], Array], x: Array) -> Array:
    """A layer over the last axis, the others as one: the gradient of its weights is then a plain product.

    [..., K] -> [..., K'].
    """
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Causal self-attention over an answer's own tokens and its prompt's."""

    heads: int
    rotary: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self,
        x_PxNxTxD: Array,
        position_PxT: Array,
        bias_TxS: Array,
        prefix: tuple[Memory, Array] | None,
        own: tuple[Memory, Array] | None,
    ) -> tuple[Array, Memory]:
        """Its output, and keys and values: the tokens' own, or ``own`` with these written at its step."""
        width = x_PxNxTxD.shape[3]

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name=name
            )

        def heads(x: Array) -> Array:
            return jnp.moveaxis(x.reshape((*x.shape[:3], self.heads, -1)), 3, 2)

        query, key, value = (heads(x) for x in jnp.split(by_rows(dense(3 * width, "qkv"), x_PxNxTxD), 3, 3))
        if self.rotary:
            query, key = rotated(query, position_PxT), rotated(key, position_PxT)
        memory = Memory(key, value)
        if own is not None:
            held, step = own
            memory = jax.tree.map(
                lambda h, x: jax.lax.dynamic_update_slice_in_dim(h, x, step, 3), held, memory
            )
        query = query * query.shape[4] ** -0.5
        scores = jnp.einsum("pnhtk,pnhsk->pnhts", query, memory.key_PxNxHxSxK) + bias_TxS
        if prefix is not None:
            far, bias_PxQ = prefix
            seen = jnp.einsum("pnhtk,phsk->pnhts", query, far.key_PxNxHxSxK[:, 0])
            scores = jnp.concatenate([seen + bias_PxQ[:, None, None, None], scores], 4)
        weight = jax.nn.softmax(scores.astype(jnp.promote_types(self.dtype, jnp.float32))).astype(self.dtype)
        length = memory.key_PxNxHxSxK.shape[3]
        near = weight[..., weight.shape[4] - length :]
        out = jnp.einsum("pnhts,pnhsk->pnhtk", near, memory.value_PxNxHxSxK)
        if prefix is not None:
            out = out + jnp.einsum("pnhts,phsk->pnhtk", weight[..., :-length], far.value_PxNxHxSxK[:, 0])
        joined = jnp.moveaxis(out, 2, 3).reshape(x_PxNxTxD.shape)
        return by_rows(dense(width, "out"), joined), memory


class Transformer(nn.Module):
    """Token embeddings, ``layers`` blocks of attention and a GELU network of four widths, and logits."""

    vocab: int
    inputs: int
    """Rows of the embedding: the vocabulary, and prompts that are ids."""
    layers: int
    width: int
    heads: int
    positions: int
    """How many learned positions there are; 0 stands for rotary ones."""
    tied: bool
    dtype: Any
    storage: Any

    @nn.compact
    def __call__(
        self,
        token_PxNxT: Array,
        position_PxT: Array,
        bias_TxS: Array,
        prefix: Prefix | None = None,
        own: tuple[tuple[Memory, ...], Array] | None = None,
    ) -> tuple[Array, tuple[Memory, ...]]:
        """Logits [P, N, T, V], and the keys and values of every layer.

        Args:
          token_PxNxT: what is read.
          position_PxT: its positions from the prompt's first token on.
          bias_TxS: ``NOWHERE`` for keys S of the answer itself that come after step T (of a prompt: [P, T, S]
            with two axes of length one behind the first, for its padding, too).
          prefix: of the prompts; None for the prompts themselves, and where there is nothing before.
          own: keys and values so far, S places, and the step at which these tokens' stand.
        """
        made = {"dtype": self.dtype, "param_dtype": self.storage}
        small = nn.initializers.normal(self.width**-0.5)
        embed = nn.Embed(self.inputs, self.width, embedding_init=small, name="embed", **made)
        # One-hot rows, because the gradient of a lookup is a slow scatter.
        x = by_rows(
            lambda rows: rows @ embed.embedding.astype(self.dtype),
            jax.nn.one_hot(token_PxNxT, self.inputs, dtype=self.dtype),
        )
        if self.positions:
            place = nn.Embed(self.positions, self.width, embedding_init=small, name="place", **made)
            x = x + place(position_PxT)[:, None]
        memories = []
        for layer in range(self.layers):
            far = None if prefix is None else (prefix.layers[layer], prefix.bias_PxQ)
            held = None if own is None else (own[0][layer], own[1])
            attend = Attention(
                self.heads, not self.positions, self.dtype, self.storage, name=f"attention_{layer}"
            )
            y = nn.RMSNorm(name=f"norm_attention_{layer}", **made)(x)
            y, memory = attend(y, position_PxT, bias_TxS, far, held)
            x = x + y
            memories.append(memory)
            y = nn.RMSNorm(name=f"norm_network_{layer}", **made)(x)
            wide = nn.Dense(4 * self.width, use_bias=False, name=f"wide_{layer}", **made)
            narrow = nn.Dense(self.width, use_bias=False, name=f"narrow_{layer}", **made)
            x = x + by_rows(narrow, nn.gelu(by_rows(wide, y)))
        x = nn.RMSNorm(name="norm", **made)(x)
        if self.tied:
            logits = by_rows(lambda rows: rows @ embed.embedding[: self.vocab].astype(self.dtype).T, x)
        else:
            logits = by_rows(nn.Dense(self.vocab, use_bias=False, name="logits", **made), x)
        return logits, tuple(memories)
