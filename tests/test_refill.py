"""Groups that tie and are drawn anew: by enumeration in NumPy, and draw by draw."""

import itertools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import train
from grpo_jax.config import validate
from grpo_jax.exact import expected_gradient, gradient_law
from grpo_jax.methods import SHIFT
from grpo_jax.part import aligned, put
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.parts.ratios import Score
from grpo_jax.parts.reductions import Constant, Informative
from grpo_jax.surrogate import Method

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(2)
TABLE = np.array([[1.0, 0.0, 0.0, 0.5], [0.0, 1.0, 1.0, 1.0]])
LOGITS, OLD, REFERENCE = RNG.normal(size=(3, 2, 4))
GROUP, TRIES = 3, 4
METHOD = Method(advantage=SHIFT, ratio=Score(), gain=Linear(), reduction=Constant(length=1.0))
PENALTY = Penalty(divergence=K3(), coef=0.3)


def config(*, refill=None, method=METHOD, expectation=None, prompts=None, group=GROUP):
    return gj.Config(
        policy=gj.ActionPolicy(logits=LOGITS), task=gj.Questions(table=TABLE), method=method,
        loop=gj.Loop(group_size=group, prompts=prompts, refill=refill), optimizer=gj.SGD(learning_rate=0.5),
        expectation=expectation, reference=REFERENCE,
    )  # fmt: skip


def softmax(logits):
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def sequences(rewards, chance, tries):
    """Every ordered group that may be kept, and how likely it is: round after round, until one is mixed."""
    groups = [list(drawn) for drawn in itertools.product(range(4), repeat=GROUP)]
    once = np.array([chance[drawn].prod() for drawn in groups])
    same = np.array([np.ptp(rewards[drawn]) == 0 for drawn in groups])
    reached, kept = 1.0, np.zeros(len(groups))
    for n in range(tries):
        kept += reached * np.where(same & (n < tries - 1), 0, once)
        reached *= once[same].sum()
    return groups, kept, once[same].sum()


@pytest.mark.parametrize("tries", [1, 2, TRIES])
@pytest.mark.parametrize("penalty", [None, PENALTY])
def test_the_exact_update_is_that_of_round_after_round(tries, penalty):
    method = replace(METHOD, penalty=penalty)
    given = config(refill=gj.Refill(tries=tries), method=method, expectation=gj.Exact())
    found = expected_gradient(given, jnp.asarray(LOGITS), reference=jnp.asarray(REFERENCE))
    want, p, ref = np.zeros((2, 4)), softmax(LOGITS), softmax(REFERENCE)
    for c in range(2):
        for drawn, weight in zip(*sequences(TABLE[c], p[c], tries)[:2], strict=True):
            r = TABLE[c][drawn]
            score = np.eye(4)[drawn] - p[c]
            push = r - r.mean()
            if penalty is not None:  # d k3 / d log π = 1 − π_ref/π
                push = push - 0.3 * (1 - ref[c][drawn] / p[c][drawn])
            want[c] += weight * (push @ score) / GROUP / 2
    np.testing.assert_allclose(found, want, atol=1e-13)
    if penalty is None:
        plain = expected_gradient(config(expectation=gj.Exact()), jnp.asarray(LOGITS))
        ties = np.array([sequences(TABLE[c], p[c], 1)[2] for c in range(2)])
        factor = (1 - ties**tries) / (1 - ties)
        np.testing.assert_allclose(found, factor[:, None] * plain, atol=1e-13)


def test_the_law_of_a_gradient_has_the_same_mean():
    given = config(refill=gj.Refill(tries=3))
    mean = gradient_law(given, jnp.asarray(LOGITS)).mean
    np.testing.assert_allclose(mean.reshape(2, 4), expected_gradient(given, jnp.asarray(LOGITS)), atol=1e-13)


def groups_of(given, seeds=0):
    """The batch that ``Sampled`` collects at the start, and one that holds every try."""
    given = replace(given, expectation=gj.Sampled())
    state = train.init(given, seeds)
    given = aligned(given) if np.ndim(seeds) else given
    size, prompts = given.loop.refill.widened(given.loop.group_size, given.loop.prompts)
    wide = put(put(put(given, "loop.group_size", size), "loop.prompts", prompts), "loop.refill", None)
    return given.expectation.collect(given, state), given.expectation.collect(wide, state)


@pytest.mark.parametrize("seeds", [0, np.arange(400)])
def test_the_first_mixed_try_of_each_prompt_is_kept(seeds):
    kept, every = groups_of(config(refill=gj.Refill(tries=3)), seeds)
    runs = kept.rollout.rewards.shape[3:] or (1,)
    tokens = np.asarray(kept.rollout.tokens).reshape(2, GROUP, -1)
    candidates = np.asarray(every.rollout.tokens).reshape(2, 3, GROUP, -1)
    drawn = np.asarray(kept.drawn).reshape(2, -1)
    seen = set()
    for c, run in itertools.product(range(2), range(runs[0])):
        mixed = [np.ptp(TABLE[c][candidates[c, n, :, run]]) > 0 for n in range(3)]
        first = mixed.index(True) if any(mixed) else 2
        np.testing.assert_array_equal(tokens[c, :, run], candidates[c, first, :, run])
        assert drawn[c, run] == first + 1
        seen.add((first, any(mixed)))
    if runs[0] > 1:
        assert seen >= {(0, True), (1, True), (2, False)}


@pytest.mark.parametrize("seeds", [1, np.arange(40)])
def test_the_first_mixed_prompts_fill_the_batch(seeds):
    kept, every = groups_of(config(refill=gj.Refill(tries=2, other=True), prompts=3, group=2), seeds)
    runs = kept.rollout.rewards.shape[3:] or (1,)
    enough = set()
    for run in range(runs[0]):
        asked = np.asarray(every.rollout.prompts).reshape(6, -1)[:, run]
        rewards = np.asarray(every.rollout.rewards).reshape(6, 2, -1)[:, :, run]
        mixed = [n for n in range(6) if np.ptp(rewards[n]) > 0]
        rows = (mixed + [n for n in range(6) if n not in mixed])[:3]
        np.testing.assert_array_equal(np.asarray(kept.rollout.prompts).reshape(3, -1)[:, run], asked[rows])
        np.testing.assert_array_equal(
            np.asarray(kept.rollout.rewards).reshape(3, 2, -1)[:, :, run], rewards[rows]
        )
        groups = mixed[2] + 1 if len(mixed) >= 3 else 6
        np.testing.assert_allclose(np.asarray(kept.drawn).reshape(3, -1)[:, run], groups / 3)
        enough.add(len(mixed) >= 3)
    if runs[0] > 1:
        assert enough == {True, False}


def test_other_prompts_multiply_all_prompts_alike():
    """Over many seeds the mean update is the plain one times groups over mixed groups, as one number."""
    seeds, size = 4000, 16
    updates = {}
    for name, refill in {"plain": None, "other": gj.Refill(tries=4, other=True)}.items():
        given = config(refill=refill, prompts=size, expectation=gj.Sampled())
        state, info = train.run(
            given, train.init(given, np.arange(seeds)), iterations=1, record=["samples_drawn"]
        )
        each = np.asarray(state.params) - LOGITS[..., None]
        updates[name] = each.mean(-1), each.std(-1) / np.sqrt(seeds)
        if refill is not None:
            spent = np.asarray(info["samples_drawn"]).mean() / (size * GROUP)
    p = softmax(LOGITS)
    share = 1 - np.mean([sequences(TABLE[c], p[c], 1)[2] for c in range(2)])
    assert spent == pytest.approx(1 / share, rel=0.02)
    (plain, spread), (other, wide) = updates["plain"], updates["other"]
    apart = np.abs(other - plain / share) / np.hypot(wide, spread / share)
    assert apart.max() < 4.5  # standard errors; eight numbers
    assert (np.abs(other - plain) / np.hypot(wide, spread)).max() > 9  # so the factor is there


def test_what_it_costs_is_recorded():
    p = softmax(LOGITS)
    ties = np.array([sequences(TABLE[c], p[c], 1)[2] for c in range(2)])
    want, one = GROUP * sum(ties**n for n in range(TRIES)).sum(), np.arange(1)
    for expectation, seeds in ((gj.Exact(), one), (gj.Sampled(), np.arange(3000))):
        given = config(refill=gj.Refill(tries=TRIES), expectation=expectation)
        _, info = train.run(given, train.init(given, seeds), iterations=1, record=["samples_drawn", "tied"])
        assert np.mean(info["samples_drawn"]) == pytest.approx(want, rel=1e-12 if seeds is one else 0.02)
        assert np.mean(info["tied"]) == pytest.approx(
            np.mean(ties**TRIES), abs=1e-12 if seeds is one else 0.02
        )
    given = config(expectation=gj.Sampled())
    _, info = train.run(given, train.init(given, np.arange(2)), iterations=1, record=["samples_drawn"])
    np.testing.assert_array_equal(info["samples_drawn"], 2 * GROUP)


def test_left_out_they_leave_a_random_factor():
    """Two prompts: every pair of ordered groups; what ties leaves the denominator."""
    p = softmax(LOGITS)
    found = np.zeros((2, 4))
    each = [sequences(TABLE[c], p[c], 1) for c in range(2)]
    for (i, a), (j, b) in itertools.product(*(enumerate(groups) for groups, _, _ in each)):
        mixed = [np.ptp(TABLE[c][drawn]) > 0 for c, drawn in enumerate((a, b))]
        for c, drawn in enumerate((a, b)):
            if mixed[c]:
                r = TABLE[c][drawn]
                push = (r - r.mean()) @ (np.eye(4)[drawn] - p[c]) / GROUP / sum(mixed)
                found[c] += each[0][1][i] * each[1][1][j] * push
    method = replace(METHOD, reduction=Informative(inner=Constant(length=1.0)))
    given = config(method=method, expectation=gj.Sampled())
    state, _ = train.run(given, train.init(given, np.arange(20000)), iterations=1, record=())
    np.testing.assert_allclose(np.asarray(state.params).mean(-1) - LOGITS, 0.5 * found, atol=3e-3)
    plain = np.asarray(expected_gradient(config(expectation=gj.Exact()), jnp.asarray(LOGITS)))
    assert abs(found - plain).max() > 0.02


def test_minibatches_train_on_groups_that_were_drawn_anew():
    given = config(refill=gj.Refill(tries=3), expectation=gj.Sampled())
    given = put(given, "loop.minibatches", 2)
    _, info = train.run(
        given, train.init(given, np.arange(3)), iterations=2, record=["samples_drawn", "tied"]
    )
    assert np.isfinite(info["tied"]).all()


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="group of one always ties"):
        validate(config(refill=gj.Refill(), group=1, method=gj.methods.reinforce))
    with pytest.raises(ValueError, match="give Loop\\(prompts"):
        validate(config(refill=gj.Refill(other=True)))
    loses = replace(
        config(refill=gj.Refill()), behavior=gj.Behavior(age=gj.Age(lag=0, limit=0, refill=False))
    )
    with pytest.raises(ValueError, match="lose answers"):
        validate(loses)
    for expectation, message in ((gj.Counts(), "use Sampled"), (gj.Exact(), "prompt by prompt")):
        given = config(refill=gj.Refill(other=True), prompts=2, expectation=expectation)
        with pytest.raises(ValueError, match=message):
            train.run(given, train.init(given), iterations=1)
