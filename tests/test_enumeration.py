"""Exact expectations against brute force: every ordered group of all prompts jointly, drawn one by one.

Nothing here goes through ``grpo_jax.exact`` but what is tested: outputs, log-probabilities and their
derivatives are written down by hand, groups are plain samples of multiplicity 1, weighed by their
probability, and for some methods each group's J is a formula in NumPy as well. Contexts differ in rewards, in
the number of their reward cells and in ties; outputs differ in length; the policy, the one that samples and
the reference are all apart; every method has a penalty in some runs.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods
from grpo_jax.config import Config, Loop, TrainState
from grpo_jax.exact import Exact
from grpo_jax.part import aligned
from grpo_jax.parts import advantages as adv
from grpo_jax.parts import corrections, reductions, returns, shaping
from grpo_jax.parts.gains import clip_mask
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.policies import TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import advantages, objective
from grpo_jax.tasks import Bernoulli, SequenceTable
from grpo_jax.types import Rollout, evaluated_at_old
from tests.losses_by_hand import HAND, by_hand

pytestmark = pytest.mark.usefixtures("x64")

SPACE = Sequences(vocab=2, horizon=3, eos=1)
TOKENS = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]])
MASK = np.array([[1.0, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]])
"""The four outputs: token 1 ends them, so that their lengths are 3, 3, 2 and 1."""
TABLES = np.array(
    [
        [[1.0, 1.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]],
        [[0.3, 0.3, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]],
        [[0.2, 0.2, 0.2, 0.2], [0.6, 0.6, 0.1, 0.6]],
    ]
)
"""[R, C, S] rewards: two cells beside one (all tied), three beside two, one beside two; as coin flips, a
context that never succeeds. The first two outputs share length and reward: three cells with lengths."""
COEFS = np.array([0.3, 0.0, 0.1])
"""Of every method's penalty, by run."""
RUNS = len(TABLES)

METHODS = methods.METHODS | {
    "group_tokens": dataclasses.replace(methods.dr_grpo, reduction=reductions.PerGroupToken()),
    "informative": dataclasses.replace(methods.dapo, reduction=reductions.Informative()),
    "length_weighted": dataclasses.replace(
        methods.dr_grpo, advantage=adv.Normalized(center=adv.LengthWeightedMean(), scale=None)
    ),
    "normalized_sum": dataclasses.replace(methods.grpo, shaping=shaping.NormalizedSum()),
    "overlong": dataclasses.replace(methods.grpo, shaping=shaping.Overlong(limit=3, buffer=2, factor=0.4)),
    "overlong_normalized": dataclasses.replace(
        methods.grpo, shaping=shaping.Overlong(inner=shaping.NormalizedSum(), limit=3, buffer=2)
    ),
    "length_summed": dataclasses.replace(methods.grpo, shaping=shaping.WithLength(weight=0.3, limit=2.0)),
    "length_apart": dataclasses.replace(
        methods.grpo, shaping=shaping.WithLength(inner=shaping.NormalizedSum(weights=(1.0, 0.3)), limit=2.0)
    ),
    "on_success": dataclasses.replace(
        methods.grpo, shaping=shaping.OnSuccess(inner=shaping.Overlong(limit=3, buffer=2), above=0.25)
    ),
    "mixed_only": dataclasses.replace(
        methods.grpo,
        shaping=shaping.Overlong(limit=3, buffer=2, factor=0.4),
        advantage=returns.MixedOnly(inner=adv.Normalized()),
    ),
    "best_of_group": dataclasses.replace(methods.grpo, advantage=adv.Normalized(center=adv.BestOfGroup())),
    "conflict": dataclasses.replace(methods.grpo, corrections=(corrections.Conflict(),)),
}
BATCH = {
    "dapo": "PerToken",
    "dapo_dynamic": "Informative, PerToken",
    "informative": "Informative, PerToken",
    "bnpo": "PerToken",
    "gpg": "PerInformative, PerToken",
    "cispo": "PerToken",
    "vespo": "PerToken",
    "reinforce_plus_plus": "Whitened, PerToken",
    "reinforce_plus_plus_baseline": "Whitened, PerToken",
}
"""What couples the whole batch, and by which parts."""
APART = sorted(set(METHODS) - set(BATCH))
"""What takes several prompts."""


class Case(NamedTuple):
    """Two contexts (or one), groups of G, rewards or coin flips, and three policies that are all apart."""

    prompts: int
    size: int
    coins: bool
    logits: np.ndarray
    """[3, R, C, nodes, 2] of θ, θ_old and θ_ref; the node of token t is t."""

    @property
    def levels(self) -> int:
        return 1 + self.coins

    @property
    def tables(self) -> np.ndarray:
        """[R, C, S]; a single context is the more varied one of the two."""
        return TABLES if self.prompts == 2 else TABLES[[0, 1, 2], [0, 0, 1]][:, None]

    def config(self, method) -> Config:
        """Runs last."""
        return Config(
            policy=TreePolicy(space=SPACE, logits=np.moveaxis(self.logits[1], 0, -1)),
            task=SequenceTable(
                space=SPACE, table=np.moveaxis(self.tables, 0, -1), noise=Bernoulli() if self.coins else None
            ),
            method=method, loop=Loop(group_size=self.size), expectation=Exact(),
        )  # fmt: skip


def case(*, prompts=2, size=2, coins=False) -> Case:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(3, RUNS, 2, 3, 2))
    logits[0] = logits[1] + 0.5 * rng.normal(size=logits[1].shape)
    return Case(prompts, size, coins, logits[:, :, :prompts])


def penalized(method):
    """The method with its penalty, or k3 if it has none, at ``COEFS`` in its runs."""
    own = method.penalty or Penalty(divergence=K3())
    return dataclasses.replace(method, penalty=dataclasses.replace(own, coef=COEFS))


def log_table(logits: np.ndarray) -> np.ndarray:
    """[C, S, T] log-probability of every token of every output, from [C, nodes, 2]."""
    logp = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    return np.stack([logp[:, t][:, TOKENS[:, t]] for t in range(3)], 2) * MASK


def slope_table(logits: np.ndarray) -> np.ndarray:
    """[C, S, T, C·nodes·2] derivatives of ``log_table`` in the logits: 1{k} − π(k) at the token's node."""
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    found = np.zeros((len(p), 4, 3, *p.shape))
    for c, s, t in np.ndindex(len(p), 4, 3):
        found[c, s, t, c, t] = MASK[s, t] * (np.eye(2)[TOKENS[s, t]] - p[c, t])
    return found.reshape(*found.shape[:3], -1)


class Groups(NamedTuple):
    """Every ordered group of all prompts, and what each outcome (an output with a reward level) is."""

    rows: np.ndarray
    """[H, P, G] outcomes."""
    chance: np.ndarray
    """[H]."""
    rewards: np.ndarray
    """[P, N]."""
    output: np.ndarray
    """[N] the output that an outcome is of."""
    logp: np.ndarray
    """[3, P, N, T] of θ, θ_old and θ_ref."""
    entropy: np.ndarray
    """[P, N, T] of θ."""


def every_group(given: Case, run: int, *, at_old: bool = False) -> Groups:
    """All (outcomes^G)^P joint groups of one run; ``at_old`` puts θ at θ_old."""
    logits = given.logits[[1, 1, 2] if at_old else [0, 1, 2], run]
    output = np.repeat(np.arange(4), given.levels)
    table = given.tables[run]
    own, law = table, np.ones_like(table)
    if given.coins:
        own = np.tile([0.0, 1.0], (given.prompts, 4))
        law = np.stack([1 - table, table], 2).reshape(given.prompts, -1)
    logp = np.stack([log_table(x)[:, output] for x in logits])
    chance = np.exp(logp[1].sum(2)) * law
    single = np.array(list(itertools.product(range(len(output)), repeat=given.size)))
    rows = single[np.array(list(itertools.product(range(len(single)), repeat=given.prompts)))]
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(2, keepdims=True)
    entropy = -(p * np.log(p)).sum(2)[:, None] * MASK[output]
    weight = chance[np.arange(given.prompts)[:, None], rows].prod((1, 2))
    return Groups(rows, weight, own, output, logp, entropy)


@jax.jit
def each(method, rows, rewards, tokens, mask, logp, entropy):
    """Of every group: J, its derivatives [P, N, T] in θ's log-probabilities, tokens held above and below."""

    def one(row):
        def pick(x):
            return jnp.take_along_axis(x, row[:, :, None], 1)

        rollout = Rollout(
            prompts=jnp.arange(len(row)), tokens=pick(tokens), mask=pick(mask),
            rewards=pick(rewards[:, :, None]), multiplicity=jnp.ones(row.shape), sampling_logp=pick(logp[1]),
            old_logp=pick(logp[1]), ref_logp=pick(logp[2]), entropy=pick(entropy),
        )  # fmt: skip
        advantage = advantages(method, rollout)
        value, slope = jax.value_and_grad(lambda x: objective(method, rollout, advantage, pick(x)))(logp[0])
        out = clip_mask(method.gain, method.ratio(rollout, pick(logp[0])), advantage)
        return value, slope, *(jnp.sum(jnp.where(side, rollout.mask, 0)) for side in out)

    return jax.vmap(one)(rows)


class Drawn(NamedTuple):
    """One run, group by group."""

    groups: Groups
    value: np.ndarray
    """[H]."""
    gradient: np.ndarray
    """[H, D]."""
    high: np.ndarray
    low: np.ndarray
    """[H] tokens held."""

    def expected(self) -> list[np.ndarray]:
        """E[J], E[∇J], expected tokens held above and below over expected tokens, share of tied groups."""
        weight, rows = self.groups.chance, self.groups.rows
        tokens = weight @ MASK.sum(1)[self.groups.output[rows]].sum((1, 2))
        rewards = self.groups.rewards[np.arange(rows.shape[1])[:, None], rows]
        tied = (np.ptp(rewards, 2) == 0).mean(1)
        return [
            weight @ self.value, weight @ self.gradient, weight @ self.high / tokens,
            weight @ self.low / tokens, weight @ tied,
        ]  # fmt: skip


def drawn(given: Case, method, run: int) -> Drawn:
    """Brute force over one run of ``penalized(method)``."""
    at_old = evaluated_at_old(method.ratio)
    groups = every_group(given, run, at_old=at_old)
    here = jax.tree.map(lambda leaf: np.asarray(leaf)[..., run] if np.ndim(leaf) else leaf, method)
    shape = (given.prompts, *TOKENS[groups.output].shape)
    tokens, mask = (np.broadcast_to(x[groups.output], shape) for x in (TOKENS, MASK))
    value, slope, high, low = map(
        np.asarray, each(here, groups.rows, groups.rewards, tokens, mask, groups.logp, groups.entropy)
    )
    jacobian = slope_table(given.logits[1 if at_old else 0, run])[:, groups.output]
    gradient = np.einsum("hpnt,pntd->hd", slope, jacobian)
    return Drawn(groups, value, gradient, high, low)


def check_by_hand(given: Case, name: str, run: int, found: Drawn) -> None:
    """Every group's J against the formula, and E[∇J] against its differences."""
    groups = found.groups
    prompt = np.arange(given.prompts)[:, None]
    mask = MASK[groups.output][groups.rows]
    rewards = groups.rewards[prompt, groups.rows]

    def value(logits: np.ndarray) -> np.ndarray:
        new = log_table(logits)[:, groups.output]
        logp = np.stack([x[prompt, groups.rows] for x in (new, *groups.logp[1:])])
        return by_hand(name, rewards, logp, mask, COEFS[run])

    if name == "grpo":
        ratio = np.exp(groups.logp[0] - groups.logp[1])[prompt, groups.rows]
        away = ((rewards - rewards.mean(2, keepdims=True)) * (np.ptp(rewards, 2) > 0)[..., None])[..., None]
        np.testing.assert_array_equal(found.high, (mask * (ratio > 1.2) * (away > 0)).sum((1, 2, 3)))
        np.testing.assert_array_equal(found.low, (mask * (ratio < 0.8) * (away < 0)).sum((1, 2, 3)))
    here = given.logits[0, run]
    np.testing.assert_allclose(found.value, value(here), rtol=0, atol=1e-13)
    steps = 1e-6 * np.eye(here.size).reshape(-1, *here.shape)
    slope = [groups.chance @ (value(here + d) - value(here - d)) / 2e-6 for d in steps]
    np.testing.assert_allclose(groups.chance @ found.gradient, slope, rtol=0, atol=1e-9)


def short(given: Case, cells: int) -> int:
    """A bound on numbers alive at once at which the last chunk of groups is not full."""
    outcomes = 4 * given.levels
    width = cells or outcomes
    count = math.comb(given.size + width - 1, width - 1)
    groups = next(k for k in range(2, count) if count % k)
    return groups * given.prompts * outcomes * 3 * RUNS


def exact(given: Case, method, ways: list[tuple[int, bool]], monkeypatch):
    """(function, its arguments) for the same five numbers by (cells, in chunks), runs last."""
    now, old, ref = (jnp.moveaxis(jnp.asarray(x), 0, -1) for x in given.logits)
    now = old if evaluated_at_old(method.ratio) else now
    zero = jnp.uint32(0)
    state = TrainState(old, old, ref, None, zero, zero, jnp.zeros(RUNS, jnp.uint32))

    def measured(way, config, params, state):
        config = aligned(config)
        batch = way.collect(config, state)

        def total(point):
            value, logp = way.objective(config, batch, point)
            return jnp.sum(value), (value, logp)

        slope, (value, logp) = jax.grad(total, has_aux=True)(params)
        high, low = way.clip_fractions(config, batch, logp)
        return [value, slope.reshape(-1, RUNS), high, low, way.tied(config, batch)]

    def everything(config, params, state):
        found = []
        for cells, chunked in ways:
            with monkeypatch.context() as patch:
                if chunked:
                    patch.setattr("grpo_jax.exact.expectation.CHUNK", short(given, cells))
                found.append(measured(Exact(cells=cells), config, params, state))
        return found

    return everything, (given.config(method), now, state)


def ways_of(given: Case, method, *, odd: bool) -> list[tuple[int, bool]]:
    """(cells, in chunks): cells by default, none, and one more than there are (which no context has).

    A case takes half of the combinations, ``odd`` the other half; without cells there are but two.
    """
    default = Exact().resolved(given.config(method)).cells
    return [(default, odd), (0, not odd), (default + 1, not odd)] if default else [(0, False), (0, True)]


def compare(given: Case, name: str, monkeypatch, *, odd: bool) -> None:
    """Every way of the exact expectation against brute force, run by run."""
    measured = ("value", "gradient", "clip fraction above", "clip fraction below", "tied share")
    method = penalized(METHODS[name])
    ways = ways_of(given, method, odd=odd)
    function, arguments = exact(given, method, ways, monkeypatch)
    found = jax.tree.map(np.asarray, jax.jit(function)(*arguments))
    groups = [drawn(given, method, run) for run in range(RUNS)]
    if name in HAND:
        for run in range(RUNS):
            check_by_hand(given, name, run, groups[run])
    wanted = [np.stack(x, -1) for x in zip(*(g.expected() for g in groups), strict=True)]
    assert np.abs(wanted[1]).max() > 1e-3
    assert name != "grpo" or min(wanted[2].max(), wanted[3].max()) > 0.01
    for way, numbers in zip(ways, found, strict=True):
        for mine, want, what in zip(numbers, wanted, measured, strict=True):
            np.testing.assert_allclose(mine, want, rtol=0, atol=1e-13, err_msg=f"{what} by {way}")


KINDS = {
    "two prompts": ({}, APART, ("grpo", "rloo", "opo", "group_tokens", "tic_grpo_length")),
    "groups of three": ({"size": 3}, APART, ()),
    "coin flips": ({"coins": True}, APART, ("grpo",)),
    "one prompt": ({"prompts": 1, "size": 3}, sorted(BATCH), ("dapo",)),
    "one prompt, coin flips": ({"prompts": 1, "coins": True}, sorted(BATCH), ()),
}
"""Case, the methods that it is for (those that couple the batch need one prompt), and which are fast."""
ODD = ("groups of three", "one prompt, coin flips")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[] if name in fast else pytest.mark.slow)
        for kind, (_, names, fast) in KINDS.items()
        for name in names
    ],
)
def test_every_group(kind, name, monkeypatch):
    compare(case(**KINDS[kind][0]), name, monkeypatch, odd=kind in ODD)


@pytest.mark.parametrize("name", sorted(BATCH))
def test_what_couples_the_batch_is_refused_at_two_prompts(name):
    config = case().config(METHODS[name])
    old = jnp.asarray(config.policy.logits)
    zero = jnp.uint32(0)
    state = TrainState(old, old, old, None, zero, zero, jnp.zeros(RUNS, jnp.uint32))
    with pytest.raises(ValueError, match=f"^{BATCH[name]} couples the whole batch"):
        Exact().collect(config, state)


def test_long_sums_are_loops_over_chunks(monkeypatch):
    """What the cases above rest on."""
    for chunked in (False, True):
        function, arguments = exact(case(), penalized(methods.grpo), [(3, chunked)], monkeypatch)
        assert ("scan[" in str(jax.make_jaxpr(function)(*arguments))) is chunked
