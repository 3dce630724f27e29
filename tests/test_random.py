"""Counter-based random numbers: known answers, uniformity, and independence of how runs are grouped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from grpo_jax.random import Stream, threefry2x32, uniforms

KNOWN = [  # Random123's kat_vectors, "threefry2x32 20": counter, key, output
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


def words(pair):
    return tuple(jnp.uint32(word) for word in pair)


compiled = jax.jit(uniforms, static_argnames=("stream", "shape"))
block = jax.jit(threefry2x32)


def draws(seed, stream=Stream.TOKEN, shape=(3, 4, 2), step=5, root=7):
    return compiled(jnp.uint32(root), jnp.asarray(seed, jnp.uint32), jnp.uint32(step), stream, shape)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_threefry_gives_the_published_vectors(counter, key, output):
    assert tuple(int(word) for word in block(words(key), words(counter))) == output


def test_threefry_is_the_generator_of_jax():
    """JAX's own Threefry, reached through the bits of a raw key, gives the same block."""
    key = jax.random.wrap_key_data(jnp.array([0x13198A2E, 0x03707344], jnp.uint32), impl="threefry2x32")
    ours = block(words((0x13198A2E, 0x03707344)), words((0, 1)))
    theirs = jax.random.key_data(jax.random.fold_in(key, 1))
    np.testing.assert_array_equal(np.array(ours), theirs)


def reference_uniforms(root, seed, step, stream, size, *, wide):
    """The layout written out in Python integers: one block a draw, its first word leading."""
    pairs = [
        [int(w) for w in block(words((root, seed)), words((step, (int(stream) << 28) + i)))]
        for i in range(size)
    ]
    if wide:
        return [((a << 21) ^ (b >> 11)) / 2**53 for a, b in pairs]
    return [(a >> 8) / 2**24 for a, _ in pairs]


def test_layout_in_single_precision():
    expected = reference_uniforms(7, 11, 5, Stream.REWARD, 5, wide=False)
    np.testing.assert_array_equal(draws(11, Stream.REWARD, (5,)), np.array(expected, np.float32))


@pytest.mark.usefixtures("x64")
def test_layout_in_double_precision():
    expected = reference_uniforms(7, 11, 5, Stream.REWARD, 5, wide=True)
    found = draws(11, Stream.REWARD, (5,))
    assert found.dtype == jnp.float64
    np.testing.assert_array_equal(found, expected)


def check_uniform(sample):
    flat = np.asarray(sample, np.float64).ravel()
    assert flat.min() >= 0
    assert flat.max() < 1
    assert stats.kstest(flat, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 4.5 / np.sqrt(flat.size)


def test_uniforms_are_uniform_in_single_precision():
    check_uniform(draws(np.arange(64), shape=(16, 32)))


@pytest.mark.usefixtures("x64")
def test_uniforms_are_uniform_in_double_precision():
    sample = draws(np.arange(64), shape=(16, 32))
    check_uniform(sample)
    low_bits = np.asarray(sample) * 2**32 % 1
    check_uniform(low_bits)


def test_the_greatest_word_stays_below_one():
    """All bits set is 1 − 2⁻²⁴ in float32, not 1."""
    assert np.float32((0xFFFFFFFF >> 8) * 2.0**-24) < 1


def test_runs_do_not_depend_on_how_they_are_grouped():
    seeds = np.array([3, 0, 2**32 - 1, 17, 4])
    together = draws(seeds)
    assert together.shape == (3, 4, 2, 5)
    for r, seed in enumerate(seeds):
        np.testing.assert_array_equal(together[..., r], draws(seed))
    np.testing.assert_array_equal(together[..., 1:3], draws(seeds[1:3]))
    mapped = jax.vmap(draws, out_axes=-1)(jnp.asarray(seeds, jnp.uint32))
    np.testing.assert_array_equal(mapped, together)


def test_streams_steps_roots_and_seeds_differ():
    base = np.asarray(draws(1))
    others = [draws(1, stream) for stream in Stream if stream != Stream.TOKEN]
    others += [draws(1, step=6), draws(1, root=8), draws(2), draws(7, root=1)]
    for other in others:
        assert not np.intersect1d(base, other).size


def test_too_many_draws_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="at most 268435455"):
        draws(0, shape=(2**14, 2**14))
