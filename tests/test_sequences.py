"""The space of sequences against plain enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.sequences import Sequences, at_prompts, inverse_cdf, lookup

SPACES = [
    Sequences(vocab=3, horizon=3, eos=2),
    Sequences(vocab=3, horizon=3, eos=0),
    Sequences(vocab=4, horizon=2, eos=1, forbidden=((0, 1), (1, 3))),
    Sequences(vocab=2, horizon=3),
    Sequences(vocab=3, horizon=1),
    Sequences(vocab=2, horizon=4, eos=1, forbidden=((0, 1), (1, 1))),
]


@functools.partial(jax.jit, static_argnums=0)
def seen(space, tokens):
    """(ended tokens, mask, place, nodes) in one compiled function."""
    ended, mask = space.ended(tokens)
    return ended, mask, space.place(tokens, mask), space.nodes(tokens)


def enumerate_plainly(space):
    """Every word of full length, cut after its first EOS, each once, in lexicographic order."""
    found = set()
    for word in itertools.product(range(space.vocab), repeat=space.horizon):
        length = word.index(space.eos) + 1 if space.eos in word else space.horizon
        if not any((t, word[t]) in space.forbidden for t in range(length)):
            found.add(word[:length])
    return sorted(found)


def rows(space):
    tokens, mask = space.support
    return [tuple(int(t) for t in row[: int(m.sum())]) for row, m in zip(tokens, mask, strict=True)]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_support_is_every_allowed_sequence_once_in_order(space):
    assert rows(space) == enumerate_plainly(space)
    tokens, mask = space.support
    assert (np.diff(mask, axis=1) <= 0).all()
    if space.eos is not None:
        assert (tokens[mask == 0] == space.eos).all()


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_mask_and_place_find_every_sequence(space):
    tokens, mask = space.support
    noise = np.where(mask > 0, tokens, (tokens + 1) % space.vocab)
    for given_tokens in (tokens, noise):
        ended, found, place, _ = seen(space, given_tokens[None])
        np.testing.assert_array_equal(ended[0], tokens)
        np.testing.assert_array_equal(found[0], mask)
        np.testing.assert_array_equal(place[0], np.arange(len(tokens)))


def test_place_is_minus_one_outside_the_support():
    space = SPACES[2]
    assert int(space.place(np.array([[[1, 0]]]), np.array([[[1.0, 0.0]]]))[0, 0]) == -1
    assert int(space.place(np.array([[[0, 3]]]), np.ones((1, 1, 2)))[0, 0]) == -1


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_nodes_number_prefixes(space):
    """Two tokens are drawn at one node exactly if the prefixes before them are equal."""
    tokens, mask = space.support
    nodes = np.asarray(seen(space, tokens[None])[3][0])
    prefix_of, node_of = {}, {}
    for row, live, places in zip(tokens, mask, nodes, strict=True):
        for t in range(int(live.sum())):
            prefix = tuple(row[:t])
            assert prefix_of.setdefault(places[t], prefix) == prefix
            assert node_of.setdefault(prefix, places[t]) == places[t]
            assert space.depths[places[t]] == t
    assert max(prefix_of) < space.offsets[-1] == len(space.depths)


def test_ended_pads_with_eos_and_keeps_the_mask():
    space = Sequences(vocab=3, horizon=4, eos=2)
    tokens, mask = space.ended(jnp.array([[[0, 2, 1, 0], [1, 1, 0, 1]]]))
    np.testing.assert_array_equal(tokens[0], [[0, 2, 2, 2], [1, 1, 0, 1]])
    np.testing.assert_array_equal(mask[0], [[1, 1, 0, 0], [1, 1, 1, 1]])


def test_runs_may_follow():
    space = SPACES[0]
    tokens = np.random.default_rng(0).integers(0, space.vocab, (2, 3, space.horizon, 4))
    together = seen(space, tokens)
    for r in range(4):
        for chunk, one in zip(together, seen(space, tokens[..., r]), strict=True):
            np.testing.assert_array_equal(chunk[..., r], one)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vocab": 1, "horizon": 2, "eos": 0}, "no room for EOS; it must be at least 2"),
        ({"vocab": 0, "horizon": 2}, "at least 1"),
        ({"vocab": 2, "horizon": 0}, "horizon is 0; it must be at least 1"),
        ({"vocab": 2, "horizon": 2, "eos": 2}, r"tokens are 0\.\.1"),
        ({"vocab": 2, "horizon": 2, "forbidden": ((2, 0),)}, "outside 2 x 2"),
        ({"vocab": 2, "horizon": 2, "forbidden": ((1, 0), (1, 1))}, "every token is forbidden at step 1"),
    ],
)
def test_a_space_without_meaning_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Sequences(**options)


def test_a_support_too_large_to_list_is_refused(monkeypatch):
    monkeypatch.setattr("grpo_jax.sequences.MAX_SUPPORT", 100)
    with pytest.raises(ValueError, match="625 sequences, more than 100"):
        _ = Sequences(vocab=5, horizon=4).support


@pytest.mark.parametrize(
    "space",
    [
        Sequences(vocab=3, horizon=4),
        Sequences(vocab=3, horizon=4, eos=1),
        Sequences(vocab=4, horizon=3, eos=0, forbidden=((0, 0), (1, 2), (2, 0))),
        Sequences(vocab=2, horizon=3, eos=1, forbidden=((0, 0),)),
    ],
)
def test_sequences_are_counted_without_listing_them(space):
    assert space.size == len(space.support[0])
    assert Sequences(vocab=50_000, horizon=4000, eos=0).size > 1e300


@pytest.mark.parametrize("size", [5, 40])
def test_lookup_picks_rows_with_and_without_runs(size):
    """Both ways of looking up, the product and the gather, at sizes either side of where they change."""
    rng, find = np.random.default_rng(size), jax.jit(lookup)
    table, index = rng.normal(size=(3, size, 2)).astype(np.float32), rng.integers(0, size, (3, 4, 2))
    places = itertools.product(range(3), range(4), range(2))
    expected = np.array([table[p, index[p, n, r], r] for p, n, r in places]).reshape(3, 4, 2)
    np.testing.assert_array_equal(find(table, index), expected)
    np.testing.assert_array_equal(find(table[..., 0], index[..., 0]), expected[..., 0])
    np.testing.assert_array_equal(find(table[..., :1], index)[..., 0], expected[..., 0])
    np.testing.assert_array_equal(find(table, index[..., :1])[..., 0], expected[..., 0])


choose = jax.jit(inverse_cdf)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 1e-6, 0.1, 0.25, 1.0]), min_size=5, max_size=5).filter(any),
    st.floats(0, 1, exclude_max=True, width=32),
)
def test_inverse_cdf_is_the_least_index_above_and_never_impossible(weights, level):
    probabilities = np.array(weights, np.float32) / np.float32(sum(weights))
    chosen = int(choose(probabilities[None, None], np.full((1, 1), level, np.float32))[0, 0])
    assert probabilities[chosen] > 0
    upto = np.cumsum(probabilities, dtype=np.float64)
    assert level * upto[-1] <= upto[chosen] + 1e-6
    assert chosen == 0 or level * upto[-1] >= upto[chosen - 1] - 1e-6


def test_at_prompts_known_drawn_and_per_run():
    table = jnp.arange(24.0).reshape(3, 4, 2)
    assert at_prompts(table, np.arange(3)) is table
    np.testing.assert_array_equal(at_prompts(table, np.array([2, 0])), np.asarray(table)[[2, 0]])
    np.testing.assert_array_equal(at_prompts(table, jnp.array([2, 2, 1])), np.asarray(table)[[2, 2, 1]])
    per_run = at_prompts(table, jnp.array([[0, 2], [1, 1]]))
    for r in range(2):
        np.testing.assert_array_equal(per_run[..., r], np.asarray(table)[[[0, 1], [2, 1]][r]][..., r])
