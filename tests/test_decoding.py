"""From logits to the distribution that tokens are drawn from: temperature and filters against a loop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.decoding import TRANSFORMERS, VLLM, Decoding
from grpo_jax.part import put
from grpo_jax.tasks import trees
from tests.filters import softmax, top_p

pytestmark = pytest.mark.usefixtures("x64")

FILTERS = {"top_k": 2.0, "top_p": 0.7, "min_p": 0.4}


def by_loop(p, order, joint):
    kept = np.ones(len(p), bool)
    for name in order:
        seen = p if joint else np.where(kept, p, 0) / p[kept].sum()
        if name == "top_p":
            kept &= top_p(seen, FILTERS[name])
        elif name == "top_k":
            kept &= np.isin(np.arange(len(p)), np.argsort(-seen, kind="stable")[:2])
        else:
            kept &= seen >= FILTERS[name] * seen.max()
    return kept


@pytest.mark.parametrize("order", [VLLM, TRANSFORMERS, ("top_p", "min_p", "top_k")])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("name", [*FILTERS, "all"])
def test_filters_keep_what_a_loop_keeps(order, joint, name):
    logits = 2 * np.random.default_rng(1).normal(size=(40, 6))
    given = FILTERS if name == "all" else {name: FILTERS[name]}
    decoding = Decoding(temperature=1.3, order=order, joint=joint, **given)
    found = np.asarray(decoding(jnp.asarray(logits), 1))
    for row, logp in zip(logits, found, strict=True):
        p = softmax(row / 1.3)
        kept = by_loop(p, [f for f in order if f in given], joint)
        np.testing.assert_array_equal(logp > -1e29, kept)
        np.testing.assert_allclose(np.exp(logp), np.where(kept, p / p[kept].sum(), 0), atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_top_p_of_one_keeps_every_token(dtype):
    """In float32 the likelier tokens add up to 1, so that the rare ones come after all of it."""
    logits = jnp.log(jnp.array([[0.7, 0.3 - 2e-9, 1e-9, 1e-9], [1e-12, 1.0, 1e-12, 1e-12]])).astype(dtype)
    for off in (Decoding(top_p=1.0), Decoding(top_p=1.0, joint=True, min_p=0.0), Decoding()):
        assert off.kept(logits, 1).all()
    many = Decoding(top_p=jnp.array([1.0, 0.5]))
    kept = many.kept(jnp.broadcast_to(logits[..., None], (*logits.shape, 2)), 1)
    assert kept[..., 0].all()
    assert kept[..., 1].sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("temperature", [0.01, 1.0, 3.0, 100.0])
def test_forbidden_tokens_are_never_kept(temperature):
    """EOS at the first step of a space that forbids it, however hot the engine is."""
    space = trees.free_length(vocab=3, horizon=2)
    policy = gj.TreePolicy.uniform(space)
    table = policy.log_probabilities(policy.init(jax.random.key(0)), np.arange(1))
    kept = Decoding(temperature=temperature, min_p=0.0, top_k=3.0).kept(table, 2)
    np.testing.assert_array_equal(kept[0], np.asarray(space.allowed)[space.depths])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "size", [3, 49, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5, 7, 10, 12, 20, 100, 257))]
)
def test_top_p_keeps_j_of_k_equal_tokens(size, dtype):
    """Uniform over K, top_p = j/K: j tokens reach it exactly, for large logits and any temperature too."""
    places = np.arange(1, size + 1)
    shares = Decoding(top_p=places / size)
    for height, heat in ((0.0, 1.0), (40.0, 0.7), (-3.3, 3.0)):
        logits = jnp.full((1, size, size), height, dtype)
        kept = dataclasses.replace(shares, temperature=heat).kept(logits, 1)
        np.testing.assert_array_equal(kept.sum((0, 1)), places)
    # A little more needs one token more, a little less does not do with one less.
    nudged = np.array([places[:-1] / size + 1e-2 / size, places[:-1] / size - 1e-2 / size])
    for values, expected in zip(nudged, (places[:-1] + 1, places[:-1]), strict=True):
        kept = Decoding(top_p=values).kept(jnp.zeros((1, size, size - 1), dtype), 1)
        np.testing.assert_array_equal(kept.sum((0, 1)), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_thresholds_that_are_met_exactly_are_met(dtype):
    """Probabilities w/Σw of whole weights w: any partial sum as top_p, any quotient to the first as min_p."""
    for weights in ([4, 2, 2, 2], [2, 1, 1], [6, 3, 1], [9, 7, 5, 3, 1], [5, 5, 5, 3, 2, 1, 1], [49, 7, 1]):
        w = np.array(weights, float)
        size = len(w)
        logits = jnp.broadcast_to(jnp.asarray(np.log(w / w.sum()), dtype)[None, :, None], (1, size, size))
        whole = Decoding(top_p=np.cumsum(w) / w.sum()).kept(logits, 1)
        np.testing.assert_array_equal(whole.sum((0, 1)), np.arange(1, size + 1), err_msg=str(weights))
        least = Decoding(min_p=w / w[0]).kept(logits, 1)
        np.testing.assert_array_equal(least[0], w[:, None] >= w, err_msg=str(weights))


def test_orders_differ_where_they_should():
    """.5 .3 .2 at top_p = .75 and min_p = .5: min-p first leaves two, whose mass .8 is renormalised."""
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    first, last = (Decoding(top_p=0.62, min_p=0.5, order=order) for order in (VLLM, TRANSFORMERS))
    assert first.kept(logits, 1).tolist() == [[True, False, False]]
    assert last.kept(logits, 1).tolist() == [[True, True, False]]


KEEP_TWO = gj.ActionPolicy(logits=np.array([[0.2, 0.1, 0.0, -0.1]]), decoding=Decoding(top_k=2.0))
QUESTION = gj.Questions(table=[[0.0, 0.2, 1.0, 0.5]])
READS = {
    "penalty": (gj.methods.grpo, "method.penalty.coef"),
    "shaping": (gj.methods.grpo_kl_in_reward, "method.shaping.coef"),
}


@pytest.mark.parametrize(("method", "path"), READS.values(), ids=READS)
@pytest.mark.parametrize("name", FILTERS)
def test_a_policy_that_filters_has_no_penalty(method, path, name):
    """What it keeps moves along with it, and the reference has probability 0 there: D is infinite."""
    policy = dataclasses.replace(KEEP_TWO, decoding=Decoding(**{name: FILTERS[name]}))
    config = gj.Config(policy=policy, task=QUESTION, method=method)
    with pytest.raises(ValueError, match="has filters"):
        gj.train.init(put(config, path, 0.1))
    free = put(config, path, 0.0)
    gj.train.init(free)
    run = {"seeds": 1, "iterations": 1, "record": ["surrogate"], "progress": False}
    with pytest.raises(ValueError, match="has filters"):
        gj.sweep(free, {path: [0.0, 0.1]}, **run)
    gj.sweep(put(config, path, 0.1), {path: [0.0]}, **run)
    heated = dataclasses.replace(KEEP_TWO, decoding=Decoding(temperature=2.0))
    gj.train.init(put(put(config, "policy", heated), path, 0.1))


def test_divergences_from_what_has_probability_zero_are_infinite():
    """Kept are {0, 1} at first and {1, 2} after: p = (., e, 1, .)/(1 + e) beside (e^.1, 1)/(1 + e^.1)."""
    kl = functools.partial(gj.diagnostics.kl, KEEP_TWO, prompts=np.arange(1))
    before, after = jnp.asarray(KEEP_TWO.logits), jnp.array([[0.0, 3.0, 2.0, 0.0]])
    closer = jnp.array([[2.0, 3.0, 0.0, 0.0]])
    assert kl(params=after, other=before) == np.inf
    assert kl(params=before, other=after) == np.inf
    p, q = softmax(np.array([2.0, 3.0])), softmax(np.array([0.2, 0.1]))
    np.testing.assert_allclose(kl(params=closer, other=before), p @ np.log(p / q), rtol=1e-12)

    only = dataclasses.replace(KEEP_TWO, decoding=Decoding(top_k=jnp.array([1.0, 2.0])))
    runs = [jnp.broadcast_to(x[..., None], (1, 4, 2)) for x in (closer, after)]
    found = gj.diagnostics.kl(only, *runs, np.arange(1))
    assert found.tolist()[1] == np.inf
    np.testing.assert_allclose(found[0], 0, atol=1e-15)


@pytest.mark.parametrize("weight", [0.0, 0.9])
def test_a_sampler_wider_than_the_policy_is_infinitely_far(weight):
    """The engine draws from the whole softmax; the proximal policy π^(1 − w) q^w has its zeros, too."""
    config = gj.Config(
        policy=KEEP_TWO,
        task=QUESTION,
        method=gj.methods.dr_grpo,
        loop=gj.Loop(group_size=64),
        behavior=gj.Behavior(decoding=Decoding(), proximal=gj.Proximal(weight=weight)),
    )
    data = gj.sweep(config, seeds=1, iterations=1, record=["kl_sampler", "mismatch_min"], progress=False)
    assert (data.kl_sampler == np.inf).all()
    assert (data.mismatch_min == 0).all()
