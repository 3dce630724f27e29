"""Outputs that are cut off, masked or not, voting or not: by enumeration in NumPy, and as libraries do."""

import itertools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import presets, train
from grpo_jax.exact import expected_gradient
from grpo_jax.methods import SHIFT
from grpo_jax.parts.advantages import GroupSpread, Normalized
from grpo_jax.parts.gains import Clip, Linear
from grpo_jax.parts.ratios import Score
from grpo_jax.parts.reductions import Constant, Informative, NonEmpty, PerSequence, PerToken
from grpo_jax.parts.shaping import Sum
from grpo_jax.parts.truncation import MaskTruncated, OfFinished, TruncatedReward
from grpo_jax.presets.compare import random_batch
from grpo_jax.surrogate import Method, loss
from grpo_jax.types import Rollout

pytestmark = pytest.mark.usefixtures("x64")

SPACE = gj.Sequences(vocab=2, horizon=3, eos=1)
TOKENS = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]])
LENGTHS = np.array([3, 3, 2, 1])
CUT = np.array([True, False, False, False])
"""The first output fills the budget without the token that ends one; the second ends in its last place."""
TABLE = np.array([[0.0, 0.7, 0.2, 1.0], [0.0, 0.0, 0.5, 0.5]])
LOGITS = np.random.default_rng(3).normal(size=(2, 3, 2))
GROUP = 3
BASE = Method(advantage=SHIFT, ratio=Score(), gain=Linear(), reduction=Constant(length=1.0))
KINDS = {
    "not masked": BASE,
    "voting": replace(BASE, reduction=MaskTruncated(inner=Constant(length=1.0))),
    "voteless": replace(
        BASE, advantage=OfFinished(inner=SHIFT), reduction=MaskTruncated(inner=Constant(length=1.0))
    ),
}


def config(method, *, expectation=None, group=GROUP):
    return gj.Config(
        policy=gj.TreePolicy(space=SPACE, logits=LOGITS), task=gj.SequenceTable(space=SPACE, table=TABLE),
        method=method, loop=gj.Loop(group_size=group), optimizer=gj.SGD(learning_rate=0.5),
        expectation=expectation,
    )  # fmt: skip


def scores(logits):
    """[S, 3, 2] gradients of log-probabilities and the probabilities [S] of outputs; node t is token t's."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    score, chance = np.zeros((4, 3, 2)), np.ones(4)
    for s, t in itertools.product(range(4), range(3)):
        if t < LENGTHS[s]:
            score[s, t] = np.eye(2)[TOKENS[s, t]] - p[t]
            chance[s] *= p[t, TOKENS[s, t]]
    return score, chance


def by_hand(kind, *, group=GROUP):
    """Every ordered group of each context: mean over both of Σ_i A_i score_i / G."""
    found = np.zeros((2, 3, 2))
    for c, (rewards, logits) in enumerate(zip(TABLE, LOGITS, strict=True)):
        score, chance = scores(logits)
        for drawn in map(list, itertools.product(range(4), repeat=group)):
            r, cut = rewards[drawn], CUT[drawn]
            voters = ~cut if kind == "voteless" else np.full(group, True)
            advantage = r - r[voters].mean() if voters.any() else np.zeros(group)
            kept = np.full(group, True) if kind == "not masked" else ~cut
            moved = sum(advantage[i] * score[drawn[i]] for i in range(group) if kept[i])
            found[c] += chance[drawn].prod() * np.asarray(moved) / group / 2
    return found


@pytest.mark.parametrize("cells", [4, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_update_is_that_of_every_ordered_group(kind, cells):
    given = config(KINDS[kind], expectation=gj.Exact(cells=cells))
    np.testing.assert_allclose(expected_gradient(given, jnp.asarray(LOGITS)), by_hand(kind), atol=1e-13)


def test_the_closed_forms_of_the_module_are_those_of_every_ordered_group():
    for group in (2, 4):
        found = {kind: by_hand(kind, group=group) for kind in KINDS}
        f = 1 - 1 / group
        for c in range(2):
            score, chance = scores(LOGITS[c])
            finished = np.where(CUT, 0.0, 1.0)
            value, done = chance @ (TABLE[c] * finished), chance @ finished
            up = np.einsum("s,sij->ij", chance * TABLE[c] * finished, score)
            end = np.einsum("s,sij->ij", chance * finished, score)
            conditional = (up - value / done * end) / done
            np.testing.assert_allclose(2 * found["not masked"][c], f * up, atol=1e-14)
            np.testing.assert_allclose(2 * found["voting"][c], f * (up - value * end), atol=1e-14)
            share = done - (1 - (1 - done) ** group) / group
            np.testing.assert_allclose(2 * found["voteless"][c], share * conditional, atol=1e-14)


@pytest.mark.parametrize("kind", ["voting", "voteless"])
def test_samples_and_their_histogram_train_alike(kind):
    ends = []
    for expectation in (gj.Sampled(), gj.Counts()):
        given = config(KINDS[kind], expectation=expectation, group=8)
        state, _ = train.run(given, train.init(given, 3), iterations=5, record=())
        ends.append(np.asarray(state.params))
    np.testing.assert_allclose(*ends, atol=1e-13)
    assert abs(ends[0] - LOGITS).max() > 0.01


def test_the_space_knows_what_is_cut_off():
    mask = (np.arange(3) < LENGTHS[:, None]).astype(float)
    np.testing.assert_array_equal(SPACE.truncated(jnp.asarray(TOKENS)[None], jnp.asarray(mask)[None])[0], CUT)
    endless = gj.Sequences(vocab=2, horizon=3)
    assert not endless.truncated(jnp.zeros((1, 4, 3), int), jnp.ones((1, 4, 3))).any()


def test_a_policy_without_an_end_is_named():
    given = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=1, actions=3), method=KINDS["voting"],
        task=gj.Questions(table=np.array([[1.0, 0.5, 0.0]])), expectation=gj.Sampled(),
    )  # fmt: skip
    with pytest.raises(ValueError, match="does not say which outputs are cut off"):
        train.run(given, train.init(given), iterations=1)
    rollout, _ = random_batch()
    with pytest.raises(ValueError, match=r"MaskTruncated needs rollout\.truncated"):
        MaskTruncated()(rollout._replace(truncated=None))


FOLDER = Path(__file__).parent / "golden"
NEMO = {"advantage": Normalized(scale=GroupSpread(ddof=1.0), eps=1e-6), "gain": Clip()}
GOLDEN = {
    # overlong_filtering: they vote, and count in no denominator
    "nemo-rl__grpo__e5d8cf__0": Method(reduction=MaskTruncated(inner=PerToken()), **NEMO),
    # stop_properly_penalty_coef .25
    "nemo-rl__grpo__53ec13__0": Method(shaping=TruncatedReward(scale=0.25), reduction=PerToken(), **NEMO),
    # mask_truncated_completions: no vote; advantage_normalization_type "standard"
    "open-instruct__dapo__b30233__0": Method(
        advantage=OfFinished(inner=Normalized(eps=1e-8)),
        gain=Clip(low=0.2, high=0.272),
        reduction=MaskTruncated(inner=PerToken()),
    ),
    # use_dynamic_sampling: tied groups are left out
    "nemo-rl__grpo__f7f057__0": Method(reduction=Informative(inner=PerToken()), **NEMO),
}
"""What surrounds the switch is written out; ``test_golden`` has the same cases by the presets."""


@pytest.mark.parametrize("name", GOLDEN)
def test_libraries_compute_the_same(name):
    file = dict(np.load(FOLDER / f"{name}.npz"))
    size = int(file["group_size"])

    def grouped(x):
        return jnp.asarray(x.reshape(-1, size, *x.shape[1:]))

    mask = grouped(file["mask"])
    rollout = Rollout(
        prompts=jnp.arange(mask.shape[0]), tokens=jnp.zeros(mask.shape, int), mask=mask,
        rewards=grouped(file["rewards"][:, None]), multiplicity=jnp.ones(mask.shape[:2]),
        sampling_logp=grouped(file["old_logp"]), old_logp=grouped(file["old_logp"]),
        ref_logp=grouped(file["ref_logp"]),
        truncated=grouped(file["truncated"].astype(float)) if "truncated" in file else None,
    )  # fmt: skip
    method = GOLDEN[name]
    value, grad = jax.value_and_grad(loss, argnums=2)(method, rollout, grouped(file["logp"]))
    np.testing.assert_allclose(value, file["expected_loss"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(grad.reshape(file["mask"].shape), file["expected_grad"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_trl_masks_tokens_and_lets_their_rewards_vote(loss_type):
    """The source of TRL 1.10: rows that are masked stay in counts of rows and leave counts of tokens."""
    options = {"loss_type": loss_type, "scale_rewards": "none"}
    options |= {"max_completion_length": 7} if loss_type == "dr_grpo" else {}
    method = presets.trl(mask_truncated_completions=True, **options)
    rollout, logp = random_batch(prompts=2, group=4, tokens=5)
    rewards, mask = np.asarray(rollout.rewards)[:, :, 0], np.asarray(rollout.mask)
    assert 0 < np.asarray(rollout.truncated).sum() < rewards.size
    advantage = rewards - rewards.mean(1, keepdims=True)
    kept = np.where(np.asarray(rollout.truncated)[:, :, None] > 0, 0, mask)
    ratio = np.exp(np.asarray(logp - rollout.old_logp))
    a = advantage[:, :, None]
    terms = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a) * kept
    by_row = (terms.sum(2) / np.maximum(kept.sum(2), 1)).mean()
    want = {"grpo": by_row, "dapo": terms.sum() / kept.sum(), "dr_grpo": terms.sum() / (rewards.size * 7)}
    np.testing.assert_allclose(loss(method, rollout, logp), -want[loss_type], rtol=1e-12)
    assert abs(loss(presets.trl(**options), rollout, logp) + want[loss_type]) > 1e-3


def test_switches_of_other_libraries():
    rollout, _ = random_batch(prompts=2, group=4, tokens=5)
    rewards, cut = np.asarray(rollout.rewards)[:, :, 0], np.asarray(rollout.truncated) > 0
    for coef, want in ((0.25, 0.25 * rewards), (-0.5, np.full_like(rewards, -0.5))):
        shaping = presets.openrlhf(stop_properly_penalty_coef=coef).shaping
        np.testing.assert_allclose(shaping(rollout), np.where(cut, want, rewards))
    assert presets.openrlhf().shaping == Sum()
    with pytest.raises(ValueError, match="in \\[0, 1\\] or negative"):
        presets.openrlhf(stop_properly_penalty_coef=2.0)
    for options in ({"loss_type": "gmpo"}, {"loss_type": "rloo"}, {"top_entropy_quantile": 0.5}):
        with pytest.raises(presets.NotModelled, match="mask_truncated_completions"):
            presets.trl(mask_truncated_completions=True, **options)
    by_rows = MaskTruncated(inner=PerSequence())(rollout).sum()
    assert by_rows == pytest.approx(1 - cut.mean())
    assert MaskTruncated(inner=NonEmpty(inner=PerSequence()))(rollout).sum() == pytest.approx(1.0)
