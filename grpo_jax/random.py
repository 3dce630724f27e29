"""Counter-based random numbers: a run's draws depend on (seed root, seed coordinate, step) alone.

Threefry-2x32 with 20 rounds (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011) is a pure
function of a key and a counter. Here the key is (root, seed) and the counter is (step, position): no state is
carried, nothing depends on how runs are grouped into chunks or devices, and settings that share a seed share
their draws (common random numbers).
"""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp

from grpo_jax.kernels import materialize, trailing
from grpo_jax.types import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_STREAM_BITS = 28


class Stream(enum.IntEnum):
    """What a draw is for. Streams of one step never share a counter (up to 2^28 draws each)."""

    PROMPT = 0
    TOKEN = 1
    REWARD = 2
    SHUFFLE = 3
    KERNEL = 4
    AGE = 5
    HELD_OUT = 6
    ANSWER = 7


def threefry2x32(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """The 20-round Threefry-2x32 block function on uint32 words, elementwise over broadcast shapes."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = x0 ^ ((x1 << rotation) | (x1 >> (32 - rotation)))
        x0 = x0 + schedule[(block + 1) % 3]
        x1 = x1 + schedule[(block + 2) % 3] + jnp.uint32(block + 1)
    return x0, x1


def uniforms(
    root: Array,
    seed: Array,
    step: Array,
    stream: Stream,
    shape: tuple[int, ...],
    dtype: jnp.dtype | None = None,
) -> Array:
    """Uniform numbers in [0, 1) of shape ``shape + seed.shape``.

    Args:
      root: uint32 scalar, shared by an experiment.
      seed: uint32 scalar or [R], the seed coordinate of each run.
      step: uint32 scalar, the iteration.
      stream: what the draw is for.
      shape: the leading shape.
      dtype: float32 (24 bits, the leading ones of the float64 draw) or float64 (53 bits); default the widest
        enabled.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype or float)
    size = 1
    for extent in shape:
        size *= extent
    if size >= 2**_STREAM_BITS:
        raise ValueError(f"{size} draws at one step; at most {2**_STREAM_BITS - 1}")
    wide = dtype == jnp.float64
    position = trailing(jnp.arange(size, dtype=jnp.uint32), 1 + seed.ndim)
    position = position + jnp.uint32(int(stream) << _STREAM_BITS)
    key, counter = (root.astype(jnp.uint32), seed), (jnp.asarray(step, jnp.uint32), position)

    a, b = threefry2x32(key, counter)
    if wide:
        mantissa = (a.astype(jnp.uint64) << 21) ^ (b.astype(jnp.uint64) >> 11)
        unit = mantissa.astype(jnp.float64) * 2.0**-53
    else:
        unit = (a >> 8).astype(dtype) * jnp.asarray(2.0**-24, dtype)
    return materialize(unit).reshape(tuple(shape) + seed.shape)
