"""Ages that differ within a batch: laws and updates by hand, over every (output, age) of every group."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import train
from grpo_jax.exact import expected_gradient, gradient_law
from grpo_jax.methods import SHIFT
from grpo_jax.part import aligned
from grpo_jax.parts.advantages import GroupMean, GroupSpread, Normalized
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.ratios import Score, Token
from grpo_jax.parts.reductions import Constant, PerToken
from grpo_jax.parts.sampler import SamplerMismatch
from tests.filters import softmax

pytestmark = pytest.mark.usefixtures("x64")

SPACE = gj.Sequences(vocab=2, horizon=3, eos=1)
TOKENS, MASK = SPACE.support
LENGTHS = MASK.sum(1)
OUTPUTS = len(TOKENS)
RNG = np.random.default_rng(3)
QUEUE = RNG.normal(size=(4, 1, SPACE.offsets[-1], 2))
"""θ of 0, 1, 2 and 3 iterations ago."""
REWARDS = RNG.normal(size=(1, OUTPUTS)).round(1)
SCORE = gj.Method(advantage=SHIFT, ratio=Score(), gain=Linear(), reduction=Constant(length=1.0))
WEIGHTED = gj.Method(
    advantage=Normalized(center=GroupMean(), scale=GroupSpread(), eps=0.1),
    ratio=Token(),
    corrections=(SamplerMismatch(high=1.5),),
    penalty=None,
    reduction=PerToken(),
)


def rows_of(output):
    """(row, token) of every token of an output: one continuing token, so a row is a depth."""
    return [(t, int(TOKENS[output, t])) for t in range(int(LENGTHS[output]))]


def log_probability(logits, output):
    """[length] of every token."""
    return np.array([np.log(softmax(logits[row])[token]) for row, token in rows_of(output)])


LOGP = np.array([[log_probability(q[0], o).sum() for o in range(OUTPUTS)] for q in QUEUE])
"""[age, output]."""


def problem(age, method=SCORE, expectation=None, **changes):
    return gj.Config(
        policy=gj.TreePolicy(space=SPACE, logits=QUEUE[0]),
        task=gj.SequenceTable(space=SPACE, table=REWARDS),
        method=method,
        optimizer=gj.SGD(learning_rate=0.5),
        loop=gj.Loop(group_size=2),
        expectation=expectation or gj.Exact(cells=0),
        behavior=gj.Behavior(age=age),
        **changes,
    )


def started(config, seeds=None):
    """The state whose queue is QUEUE, after so many iterations that every age is real."""
    state = train.init(config, 0 if seeds is None else np.arange(seeds))
    queue = jnp.asarray(QUEUE[: config.behavior.age.depth + 1])
    if seeds is not None:
        queue = jnp.broadcast_to(queue[..., None], (*queue.shape, seeds))
    return state._replace(queue=queue, step=jnp.uint32(10))


def law_by_hand(*, lag=0, spread=0, speed=np.inf, limit=np.inf, refill=True, depth=3):
    """{(output, age): probability}, what is lost under the key None."""
    mass = {}
    for o, a in itertools.product(range(OUTPUTS), range(depth + 1)):
        wait = 0 if speed == np.inf else int(np.ceil(LENGTHS[o] / speed)) - 1
        if lag <= a - wait <= lag + spread:
            mass[o, a] = np.exp(LOGP[a, o]) / (spread + 1)
    if refill:
        mass = {key: value for key, value in mass.items() if key[1] <= limit}
    total = sum(mass.values())
    law = {key: value / total for key, value in mass.items() if key[1] <= limit}
    return law | {None: max(1 - sum(law.values()), 0.0)}


KINDS = {
    "one age": {"lag": 2},
    "mixed": {"lag": 1, "spread": 2},
    "by length": {"lag": 0, "speed": 1.0},
    "by length, mixed": {"lag": 1, "spread": 1, "speed": 2.0},
    "in time, drawn anew": {"lag": 0, "speed": 1.0, "limit": 1},
    "in time, lost": {"lag": 0, "speed": 1.0, "limit": 1, "refill": False},
    "mixed, lost": {"lag": 0, "spread": 3, "limit": 2, "refill": False},
}


def ages(kind):
    return gj.Age(depth=3, **KINDS[kind])


def update_by_hand(law, method):
    """E of the surrogate's gradient [rows, 2] at QUEUE[0] over pairs, π_old the newest policy."""
    total = np.zeros(QUEUE.shape[2:])
    for pair in itertools.product(law, repeat=2):
        chance = np.prod([law[key] for key in pair])
        group = [key for key in pair if key is not None]
        if not group or chance == 0:
            continue
        rewards = np.array([REWARDS[0, o] for o, _ in group])
        advantage = rewards - rewards.mean()
        if method is WEIGHTED:
            advantage = advantage / (rewards.std() + 0.1)
        tokens = sum(LENGTHS[o] for o, _ in group)
        for (o, a), value in zip(group, advantage, strict=True):
            here, there = log_probability(QUEUE[0, 0], o), log_probability(QUEUE[a, 0], o)
            for t, (row, token) in enumerate(rows_of(o)):
                weight = 1 / len(group)
                if method is WEIGHTED:
                    weight = min(np.exp(here[t] - there[t]), 1.5) / tokens
                total[row] -= chance * value * weight * softmax(QUEUE[0, 0, row])
                total[row, token] += chance * value * weight
    return total


@pytest.mark.parametrize("method", [SCORE, WEIGHTED], ids=["scores", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_update_is_the_sum_over_every_pair_of_answers_and_ages(kind, method):
    config = problem(ages(kind), method)
    after, _ = train.run(config, started(config), iterations=1, record=())
    want = update_by_hand(law_by_hand(**KINDS[kind]), method)
    np.testing.assert_allclose((np.asarray(after.params) - QUEUE[0])[0] / 0.5, want, atol=1e-12)
    assert abs(want).max() > 1e-3


def test_cells_give_what_single_outcomes_give():
    table = np.where(REWARDS > 0, 1.0, 0.0)
    found = []
    for cells in (0, None):
        config = problem(ages("in time, lost"), WEIGHTED, gj.Exact(cells=cells))
        config = dataclasses.replace(config, task=gj.SequenceTable(space=SPACE, table=table))
        found.append(np.asarray(train.run(config, started(config), iterations=1, record=())[0].params))
    np.testing.assert_allclose(found[0], found[1], atol=1e-13)


def test_kinds_differ():
    laws = [law_by_hand(**KINDS[kind]) for kind in KINDS]
    assert all(abs(sum(law.values()) - 1) < 1e-12 for law in laws)
    updates = [update_by_hand(law, WEIGHTED) for law in laws]
    for one, other in itertools.combinations(updates, 2):
        assert abs(one - other).max() > 1e-3


class Unlisted:
    """A tree whose outputs nobody lists."""

    trailing, rank = True, 3

    def __init__(self, tree):
        self.tree = tree

    def __getattr__(self, name):
        if name in ("support", "score_support", "counts", "logits", "space", "tree"):
            raise AttributeError(name)
        return getattr(object.__getattribute__(self, "tree"), name)


@pytest.mark.parametrize("expectation", [gj.Sampled(), gj.Counts()])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_law_and_report_their_own_age(kind, expectation):
    seeds = 2000
    config = problem(ages(kind), WEIGHTED, expectation)
    batch = expectation.collect(aligned(config), started(config, seeds))
    law = law_by_hand(**KINDS[kind])
    rollout = batch.rollout
    shape = rollout.multiplicity.shape
    tokens = np.broadcast_to(np.asarray(rollout.tokens), (*shape[:2], 3, seeds))
    mask = np.broadcast_to(np.asarray(rollout.mask), tokens.shape)
    place = np.array(
        [[np.flatnonzero((t == TOKENS).all(1))[0] for t in np.asarray(row).T] for row in tokens[0]]
    )  # [N, R]
    age = np.full(place.shape, KINDS[kind]["lag"])
    if batch.origin.age is not None:
        age = np.broadcast_to(np.asarray(batch.origin.age), (1, *place.shape))[0]
    weight = np.broadcast_to(np.asarray(rollout.multiplicity), (*shape[:2], seeds))[0]
    count = 2 * seeds
    lost = 1 - weight.sum() / count
    for key, chance in law.items():
        share = lost if key is None else weight[(place == key[0]) & (age == key[1])].sum() / count
        assert abs(share - chance) < 5 * np.sqrt(chance * (1 - chance) / count) + 1e-12, key
    reported = np.broadcast_to(np.asarray(rollout.sampling_logp), tokens.shape).sum(2)[0]
    there = weight > 0
    np.testing.assert_allclose(reported[there], LOGP[age, place][there], atol=1e-12)
    assert (mask.sum(2)[0] == LENGTHS[place])[there].all()


FEW = ("by length, mixed", "mixed, lost")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in FEW else pytest.mark.slow) for k in KINDS])
def test_counts_are_the_samples(kind):
    found = []
    for expectation in (gj.Sampled(), gj.Counts()):
        config = problem(ages(kind), WEIGHTED, expectation)
        config = dataclasses.replace(config, loop=gj.Loop(group_size=5, inner_steps=2))
        state, info = train.run(
            config, train.init(config, np.arange(3)), iterations=5,
            record=["age", "arrived", "mismatch", "length"],
        )  # fmt: skip
        found.append({"params": np.asarray(state.params)} | {k: np.asarray(v) for k, v in info.items()})
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-12, err_msg=name)


def test_outputs_that_nobody_lists_are_of_mixed_ages_too():
    """Every age is sampled and one chosen; the law is the mixture."""
    tree = gj.TreePolicy(space=SPACE, logits=QUEUE[0])
    seeds = 4000
    config = dataclasses.replace(problem(ages("mixed, lost"), WEIGHTED, gj.Sampled()), policy=Unlisted(tree))
    listed = problem(ages("mixed, lost"), WEIGHTED, gj.Sampled())
    batch = gj.Sampled().collect(aligned(config), started(listed, seeds))
    weight = np.asarray(batch.rollout.multiplicity)[0]
    age = np.asarray(batch.origin.age)[0]
    for a in range(4):
        share = (age == a).mean()
        assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / age.size)
    np.testing.assert_array_equal(weight, age <= 2)
    lengths = np.asarray(batch.rollout.mask).sum(2)[0]
    for a in range(4):
        q = np.exp(LOGP[a])
        spread = np.sqrt(q @ LENGTHS**2 - (q @ LENGTHS) ** 2)
        assert abs(lengths[age == a].mean() - q @ LENGTHS) < 5 * spread / np.sqrt((age == a).sum())


def test_what_is_recorded_of_ages_is_the_law_s():
    """Of the first iterations no policy is older than the run."""
    config = problem(ages("in time, lost"), SCORE)
    _, info = train.run(config, started(config), iterations=1, record=["age", "arrived", "length"])
    law = law_by_hand(**KINDS["in time, lost"])
    there = {key: chance for key, chance in law.items() if key is not None}
    total = sum(there.values())
    np.testing.assert_allclose(info["arrived"], total, rtol=1e-12)
    np.testing.assert_allclose(info["age"], sum(p * a for (_, a), p in there.items()) / total, rtol=1e-12)
    want = sum(p * LENGTHS[o] for (o, _), p in there.items()) / total
    np.testing.assert_allclose(info["length"], want, rtol=1e-12)
    config = problem(gj.Age(lag=2, depth=2), SCORE)
    _, info = train.run(config, train.init(config), iterations=4, record=["age"])
    np.testing.assert_array_equal(info["age"], [0, 1, 2, 2])


@pytest.mark.parametrize(
    "kind",
    ["by length, mixed", *(pytest.param(k, marks=pytest.mark.slow) for k in ("in time, lost", "one age"))],
)
def test_an_exact_gradient_takes_the_policy_as_old_as_it_likes(kind):
    """Without a history all ages are of one policy; what is lost for its length stays lost."""
    config = problem(ages(kind), WEIGHTED)
    got = np.asarray(expected_gradient(config, jnp.asarray(QUEUE[0])))
    law = gradient_law(config, jnp.asarray(QUEUE[0]))
    np.testing.assert_allclose(np.asarray(law.mean), got.ravel(), atol=1e-12)
    free = dataclasses.replace(config, behavior=None)
    gap = abs(np.asarray(expected_gradient(free, jnp.asarray(QUEUE[0]))) - got).max()
    assert (gap > 1e-3) == ("lost" in kind)
    assert gap > 1e-3 or gap < 1e-12


def test_the_proximal_policy_may_be_older_than_the_trainer_s():
    """log π_prox = (1 − w) log π_{n−2} + w log q_{n−1}."""
    prox = gj.Proximal(lag=2, weight=0.25)
    behavior = gj.Behavior(age=gj.Age(lag=1, depth=3), proximal=prox)
    config = dataclasses.replace(problem(gj.Age(lag=1, depth=3)), behavior=behavior)
    rollout = config.expectation.collect(config, started(config)).rollout
    old = np.asarray(rollout.old_logp).sum(2)[0]
    np.testing.assert_allclose(old, 0.75 * LOGP[2] + 0.25 * LOGP[1], atol=1e-12)
    np.testing.assert_allclose(np.asarray(rollout.sampling_logp).sum(2)[0], LOGP[1], atol=1e-12)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lag": 2}, "lag is 2, older than the 1 policies kept; give depth=2"),
        ({"lag": 1, "spread": 1}, "the greatest age is 2, older than the 1 policies kept"),
        ({"lag": 0, "spread": 0.5}, "spread is 0.5; it must be a whole number"),
        ({"lag": 1, "limit": 0}, "every answer is too old"),
        ({"speed": 0.0}, "speed"),
    ],
)
def test_ages_without_meaning_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        gj.Age(**given)


def test_ages_are_judged_with_the_lengths_of_the_outputs():
    deep = problem(gj.Age(lag=0, speed=1.0, depth=1))
    with pytest.raises(ValueError, match="the greatest age is 2, older than the 1 policies kept"):
        train.init(deep)
    with pytest.raises(ValueError, match="the greatest age is 3, older than the 2 policies kept"):
        gj.sweep(problem(gj.Age(lag=0, speed=1.0, depth=2)), {"behavior.age.lag": [0, 1]}, iterations=8)
    late = gj.Config(
        policy=gj.TreePolicy.uniform(gj.Sequences(vocab=2, horizon=3)),
        task=gj.SequenceTable(space=gj.Sequences(vocab=2, horizon=3), table=np.zeros((1, 8))),
        behavior=gj.Behavior(age=gj.Age(lag=0, speed=1.0, depth=2, limit=1)),
    )
    with pytest.raises(ValueError, match="even the newest answers are 2 iterations old"):
        train.init(late)
    unlisted = dataclasses.replace(
        problem(gj.Age(lag=0, speed=1.0, depth=3), expectation=gj.Sampled()),
        policy=Unlisted(gj.TreePolicy(space=SPACE, logits=QUEUE[0])),
    )
    with pytest.raises(ValueError, match="needs outputs that can be listed"):
        gj.config.check_behavior(unlisted)
    said = "the proximal policy is 2 iterations old, older than the 0 policies"
    with pytest.raises(ValueError, match=said):
        gj.Behavior(proximal=gj.Proximal(lag=2))


def test_a_group_that_loses_answers_is_summed_for_one_prompt_only():
    two = gj.Config(
        policy=gj.TreePolicy(space=SPACE, logits=np.concatenate([QUEUE[0], QUEUE[1]])),
        task=gj.SequenceTable(space=SPACE, table=np.concatenate([REWARDS, REWARDS])),
        method=SCORE,
        loop=gj.Loop(group_size=2),
        expectation=gj.Exact(cells=0),
        behavior=gj.Behavior(age=ages("in time, lost")),
    )
    with pytest.raises(ValueError, match="one prompt, Age"):
        train.run(two, train.init(two), iterations=1)
    whole = dataclasses.replace(two, behavior=gj.Behavior(age=ages("in time, drawn anew")))
    jax.block_until_ready(train.run(whole, train.init(whole), iterations=1, record=()))


@pytest.mark.parametrize("weight", [None, 0.0, 0.4, 1.0])
def test_what_is_recorded_of_the_sampler_is_of_the_trainer_s_policy_whatever_the_proximal_one(weight):
    age = gj.Age(lag=2, depth=3)
    proximal = None if weight is None else gj.Proximal(weight=weight, lag=1)
    config = dataclasses.replace(problem(age), behavior=gj.Behavior(age=age, proximal=proximal))
    names = ["mismatch_sequence", "effective_sample_size", "kl_sampler"]
    _, info = train.run(config, started(config), iterations=1, record=names)
    # of the first iteration θ_old is the start, QUEUE[0]
    q, ratio = np.exp(LOGP[2]), np.exp(LOGP[0] - LOGP[2])
    np.testing.assert_allclose(info["mismatch_sequence"], 1, rtol=1e-12)
    np.testing.assert_allclose(info["effective_sample_size"], 1 / (q @ ratio**2), rtol=1e-12)
    np.testing.assert_allclose(info["kl_sampler"], -q @ np.log(ratio), rtol=1e-12)


def test_a_queue_deeper_than_the_run_is_refused():
    config = problem(gj.Age(lag=1, depth=3))
    said = "3 policies deep, but in a run of 3 iterations none is older than 2"
    with pytest.raises(ValueError, match=said):
        gj.sweep(config, iterations=3)
    gj.sweep(config, iterations=4, progress=False, record=["age"])


@pytest.mark.parametrize(
    "expectation", [gj.Sampled(), pytest.param(gj.Counts(), marks=pytest.mark.slow), gj.Exact(cells=0)]
)
def test_every_number_of_an_age_is_swept(expectation):
    """A run of a sweep is the run of its own setting; no setting repeats another."""
    config = problem(gj.Age(lag=0, spread=0, speed=3.0, limit=9, depth=5), WEIGHTED, expectation)
    axes = {"age.lag": [0, 1], "age.spread": [0, 2], "age.speed": [1.0, 2.0, 3.0], "age.limit": [4, 9]}
    wide = gj.sweep(config, axes, iterations=7, record=["expected_reward", "age"], progress=False)
    for lag, spread, speed in [(0, 2, 1.0), (1, 0, 2.0), (1, 2, 1.0), (0, 0, 3.0)]:
        one = dataclasses.replace(
            config, behavior=gj.Behavior(age=gj.Age(lag=lag, spread=spread, speed=speed, limit=4, depth=5))
        )
        alone = gj.sweep(one, iterations=7, record=["expected_reward", "age"], progress=False)
        here = wide.sel({"age.lag": lag, "age.spread": spread, "age.speed": speed, "age.limit": 4})
        for name in ("expected_reward", "age"):
            np.testing.assert_allclose(here[name], alone[name], atol=1e-12)
    ends = wide.expected_reward.isel(seed=0, iteration=-1)
    for name, two in (("age.lag", 1.0), ("age.spread", 1.0)):
        assert float(abs(ends.sel({"age.speed": two}).diff(name)).max()) > 1e-6
    assert float(abs(ends.diff("age.speed")).max()) > 1e-6


def test_the_mass_that_filters_keep_is_recorded_for_every_age():
    """At the states of the sampled tokens, under the policy that drew them."""
    level = 0.7
    age = gj.Age(lag=0, spread=3, depth=3)
    config = problem(age)
    config = dataclasses.replace(config, behavior=gj.Behavior(age=age, decoding=gj.Decoding(top_p=level)))
    _, info = train.run(config, started(config), iterations=1, record=["kept_mass"])
    total = tokens = 0.0
    for logits in QUEUE:
        pi = np.stack([softmax(row) for row in logits[0]])
        kept = np.where(pi.max(1) >= level, pi.max(1), 1.0)  # of two tokens both, if one is not enough
        free = np.where(pi.max(1) >= level, 0, 1)
        q = np.where(free[:, None] | (pi == pi.max(1, keepdims=True)), pi / kept[:, None], 0)
        for o in range(OUTPUTS):
            chance = np.prod([q[row, token] for row, token in rows_of(o)])
            total += chance * sum(kept[row] for row, _ in rows_of(o))
            tokens += chance * LENGTHS[o]
    np.testing.assert_allclose(info["kept_mass"], total / tokens, rtol=1e-12)
    assert float(info["kept_mass"][0]) < 0.999
