"""A small decoder-only transformer: pre-norm, rotary or learned positions, a cache of keys and values.

Letters of shapes: M answers (or prompts), T tokens of each, S keys, V vocabulary, D width, H heads, K width
of a head. Features come first and answers last, so that a layer is one product of two matrices, nothing is
ever transposed, and attention runs side by side over all answers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from grpo_jax.kernels import materialize
from grpo_jax.policies.products import apart, beside, pairs
from grpo_jax.types import Array

NOWHERE = -1e30
"""What is added to the score of a key that a query may not see."""


class Memory(NamedTuple):
    """Keys and values of one layer."""

    key_HxKxSxM: Array
    value_HxKxSxM: Array


def turns(position_TxM: Array, width: int, dtype: Any) -> tuple[Array, Array]:
    """cos and sin [K/2, T, M] of rotary positions (arXiv:2104.09864): position·10000^(−2k/K)."""
    rate = 10_000.0 ** (-jnp.arange(width // 2) / (width // 2))
    angle = rate[:, None, None] * position_TxM
    cos, sin = (materialize(x.astype(dtype)) for x in (jnp.cos(angle), jnp.sin(angle)))
    return cos, sin


def rotated(x_HxKxTxM: Array, turn: tuple[Array, Array]) -> Array:
    """Pairs (k, k + K/2) of x [H, K, T, M] turned by their positions' angles."""
    (a, b), (cos, sin) = apart(x_HxKxTxM, 2, 1), turn
    return beside([a * cos - b * sin, a * sin + b * cos], 1)


def weights(score_HxTxSxM: Array) -> tuple[Array, Array]:
    """e^(score − greatest) [H, T, S, M] and its sum over S [H, T, 1, M]."""
    top = jax.lax.stop_gradient(jnp.max(score_HxTxSxM, 2, keepdims=True))
    weight = jnp.exp(score_HxTxSxM - top)
    return weight, jnp.sum(weight, 2, keepdims=True)


class Dense(nn.Module):
    """W^T x: a linear layer over the first axis, the others as one. [D, ...] -> [features, ...]."""

    features: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[features, ...]."""
        shape = (x.shape[0], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        return columns(kernel.astype(self.dtype), x)


def columns(kernel: Array, x: Array) -> Array:
    """W^T x over the first axis of both. [D, D'], [D, ...] -> [D', ...]."""
    return (kernel.T @ x.reshape(x.shape[0], -1)).reshape(-1, *x.shape[1:])


class Norm(nn.Module):
    """RMSNorm (arXiv:1910.07467) over the first axis: x / √(mean x² + 1e-6) times a scale of its own."""

    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[D, ...]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[:1], self.param_dtype)
        wide = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        size = jnp.mean(jnp.square(wide), 0, keepdims=True)
        scale = scale.astype(wide.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return (wide * (jax.lax.rsqrt(size + 1e-6) * scale)).astype(self.dtype)


class Attention(nn.Module):
    """Causal self-attention over what was read before and the tokens' own keys."""

    heads: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self,
        x_DxTxM: Array,
        turn: tuple[Array, Array] | None,
        bias_TxSxM: Array,
        before: Memory | None,
        step: Any,
    ) -> tuple[Array, Memory]:
        """Its output, and the keys and values that it read."""
        width, *rest = x_DxTxM.shape
        made = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        every = Dense(3 * width, name="qkv", **made)(x_DxTxM)
        query, key, value = (x.reshape(self.heads, -1, *rest) for x in apart(every, 3, 0))
        query = query * query.shape[1] ** -0.5
        if turn is not None:
            query, key = rotated(query, turn), rotated(key, turn)
        memory = Memory(key, value)
        if before is not None:
            memory = Memory(*(joined(old, new, step) for old, new in zip(before, memory, strict=True)))
        score = pairs(query, memory.key_HxKxSxM, 1) + bias_TxSxM
        weight, mass = weights(score.astype(jnp.promote_types(self.dtype, jnp.float32)))
        out = pairs(memory.value_HxKxSxM, weight.astype(self.dtype), 2)
        out = out * (1 / jnp.swapaxes(mass, 1, 2)).astype(self.dtype)
        return Dense(width, name="out", **made)(out.reshape(x_DxTxM.shape)), memory


def joined(before: Array, new: Array, step: Any) -> Array:
    """Keys or values [H, K, S, M] behind those of before, or written into them at ``step``."""
    if step is not None:
        return jax.lax.dynamic_update_slice_in_dim(before, new, step, 2)
    return beside([jnp.repeat(before, new.shape[3] // before.shape[3], 3), new], 2)


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
        token_TxM: Array,
        position_TxM: Array,
        bias_TxSxM: Array,
        before: tuple[Memory, ...] | None = None,
        step: Any = None,
    ) -> tuple[Array, tuple[Memory, ...]]:
        """Logits [V, T, M], and the keys and values of every layer.

        Args:
          token_TxM: what is read.
          position_TxM: its positions from the prompt's first token on.
          bias_TxSxM: ``NOWHERE`` for keys S that step T may not see, 0 for others.
          before: keys and values of what was read before; one may be that of several answers side by side.
          step: None, or the place among these at which the tokens' own are written; others are behind them.
        """
        made = {"dtype": self.dtype, "param_dtype": self.storage}
        small = nn.initializers.normal(self.width**-0.5)
        embed = nn.Embed(self.inputs, self.width, embedding_init=small, name="embed", **made)
        # One-hot rows, because the gradient of a lookup is a slow scatter.
        hit = jax.nn.one_hot(token_TxM, self.inputs, axis=0, dtype=self.dtype)
        x = columns(embed.embedding.astype(self.dtype), hit)
        if self.positions:
            place = nn.Embed(self.positions, self.width, embedding_init=small, name="place", **made)
            x, turn = x + jnp.moveaxis(place(position_TxM), 2, 0), None
        else:
            turn = turns(position_TxM, self.width // self.heads, self.dtype)
        memories = []
        for layer in range(self.layers):
            attend = Attention(self.heads, self.dtype, self.storage, name=f"attention_{layer}")
            y = Norm(name=f"norm_attention_{layer}", **made)(x)
            own = None if before is None else before[layer]
            y, memory = attend(y, turn, bias_TxSxM, own, step)
            x = x + y
            memories.append(memory)
            y = Norm(name=f"norm_network_{layer}", **made)(x)
            y = nn.gelu(Dense(4 * self.width, name=f"wide_{layer}", **made)(y))
            x = x + Dense(self.width, name=f"narrow_{layer}", **made)(y)
        x = Norm(name="norm", **made)(x)
        if self.tied:
            logits = columns(embed.embedding[: self.vocab].astype(self.dtype).T, x)
        else:
            logits = Dense(self.vocab, name="logits", **made)(x)
        return logits, tuple(memories)
