"""Products written out over short axes: against plain sums; derivatives against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from grpo_jax.kernels import WRITTEN_OUT
from grpo_jax.policies.products import apart, beside, pairs


def given(axis, length=3, groups=2):
    """[2, 4, C, 5] and [2, 6, C, 5] where ``axis`` is 2, [2, C, 4, 5] and [2, C, 6, 5] where it is 1."""
    rng = np.random.default_rng(axis)
    shapes = [(groups, rows, length, 5) if axis == 2 else (groups, length, rows, 5) for rows in (4, 6)]
    return [rng.normal(size=shape) for shape in shapes]


def by_hand(a, b, axis):
    a, b = (np.swapaxes(x, 1, 2) if axis == 1 else x for x in (a, b))
    out = np.zeros((a.shape[0], a.shape[1], b.shape[1], a.shape[3]))
    for g, i, j, m in np.ndindex(*out.shape):
        out[g, i, j, m] = sum(a[g, i, c, m] * b[g, j, c, m] for c in range(a.shape[2]))
    return out


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 7, WRITTEN_OUT + 1])
def test_pairs_are_sums_of_products(axis, length, x64):
    a, b = given(axis, length)
    np.testing.assert_allclose(pairs(a, b, axis), by_hand(a, b, axis), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [1, 2])
def test_pairs_have_derivatives_of_every_order_forwards_and_backwards(axis, x64):
    def twice(a, b):
        return jnp.sin(pairs(a, jnp.cos(b), axis))

    check_grads(twice, given(axis), order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [1, 2])
def test_runs_join_the_groups_wherever_their_axis_is(axis, x64):
    one, other = given(axis), given(axis, groups=2)
    a = np.stack([one[0], 2 * other[0], -one[0]], 4)
    wanted = np.stack([by_hand(a[..., r], one[1], axis) for r in range(3)])
    found = jax.vmap(lambda x, y: pairs(x, y, axis), in_axes=(4, None))(a, one[1])
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    both = jax.vmap(lambda x, y: pairs(x, y, axis), in_axes=(4, 1))(a, np.stack([one[1]] * 3, 1))
    np.testing.assert_allclose(both, wanted, rtol=1e-12, atol=1e-12)


def test_half_precision_sums_in_single_precision():
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in given(2, 64))
    found = pairs(a, b, 2)
    assert found.dtype == jnp.bfloat16
    wanted = by_hand(np.asarray(a, float), np.asarray(b, float), 2)
    np.testing.assert_allclose(np.asarray(found, float), wanted, rtol=2**-8, atol=1e-3)


def test_what_does_not_fit_is_refused():
    a, b = given(2)
    with pytest.raises(TypeError, match="pairs over"):
        pairs(a, b, 1)
    with pytest.raises(TypeError, match="pairs over"):
        pairs(a, b[:1], 2)


def test_parts_go_apart_and_beside_each_other_again(x64):
    x = np.random.default_rng(0).normal(size=(2, 6, 3))
    parts = apart(jnp.asarray(x), 3, 1)
    np.testing.assert_array_equal(np.stack(parts), np.stack(np.split(x, 3, 1)))
    np.testing.assert_array_equal(beside(parts, 1), x)

    def turned(x):
        a, b, c = apart(x, 3, 1)
        return beside([a * b, jnp.sin(c), b * c], 2)

    check_grads(turned, [x], order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)
