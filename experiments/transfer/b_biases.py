"""[B] for sequences: shared prefixes, lengths, the reward's scale, momentum, the value, the clip."""

from __future__ import annotations

import numpy as np

import grpo_jax as gj
from experiments.harness.numbers import Number, mean, worst
from experiments.harness.verdict import Claim
from experiments.transfer import surrogate
from experiments.transfer.enumeration import GROUP, MEAN_LENGTH, chances, update
from experiments.transfer.policies import LENGTH, MASK, TOKENS, World
from experiments.transfer.tasks import BINARY, FIRST, GRADED
from experiments.transfer.training import ADAMW, OPTIMIZERS, SGD, at, pace, reached, train

GROUPS = 200


def shift(old: np.ndarray, now: np.ndarray) -> np.ndarray:
    """GRPO's update for right and wrong answers: r − r̄, token ratios, constant weights, no clip."""
    return update(old, now, BINARY)


def b1(world: World, claim: Claim) -> None:
    """Where all answers of a group share a first token, uniform weights do not push it, and 1/|o| does.

    Groups of 8 drawn from the policy given a first token, graded rewards at random, r − r̄. The push is
    how the update moves log π of that token to first order, Σ α_i A_i ∇log π(o_i) · ∇log π(first token),
    as a share of the gross push Σ α_i |A_i| ‖∇log π(first token)‖².

    Refuted if uniform weights leave more than 1e-9 of it on average, or 1/|o| less than 2 % (the claim's
    own margins). That Σ α_i A_i, the push through the token's own gradient, is 0 under uniform weights
    (1e-12) is a check of the instrument.
    """
    rng = np.random.default_rng(world.root)
    logp = world.listed(world.start)
    found: dict[str, list[np.ndarray]] = {"constant": [], "1/|o|": []}
    direct = 0.0
    for prompt, token in np.ndindex(logp.shape[1], 2):
        members = np.flatnonzero(TOKENS[:, 0] == token)
        one = np.zeros_like(logp)
        one[:, prompt, members[0], 0] = 1.0
        own = world.pull(world.start, one)
        pushed = (world.push(world.start, own) * MASK).sum(-1)[:, prompt][:, members]
        gross = np.sum(own**2, 1)
        law = chances(logp)[:, prompt, members]
        law = np.cumsum(law / law.sum(1, keepdims=True), 1)
        drawn = np.sum(rng.uniform(size=(1, GROUPS, GROUP, 1)) > law[:, None, None, :-1], -1)
        rewards = rng.integers(0, 3, drawn.shape) / 2
        advantage = rewards - rewards.mean(-1, keepdims=True)
        dots = np.take_along_axis(pushed[:, None], drawn.reshape(len(law), 1, -1), 2).reshape(drawn.shape)
        for name, alpha in (("constant", 1.0), ("1/|o|", MEAN_LENGTH / LENGTH[members][drawn])):
            net = np.abs(np.sum(alpha * advantage * dots, -1)).mean(-1)
            whole = np.sum(np.abs(alpha * advantage), -1).mean(-1) * gross
            found[name].append(net / whole)
        direct = max(direct, np.abs(advantage.sum(-1)).max())
    claim.requires("uniform weights: Σ A", Number(float(direct), 0.0, 1e-12))
    constant, divided = (np.mean(each, 0) for each in found.values())
    number = mean(constant, expected=0.0, tolerance=1e-9)
    claim.refutes("uniform weights: share of the push that is left", number)
    claim.refutes("1/|o|: share of the push that is left", mean(divided, expected=0.02, relation="at least"))
    claim.finds(
        f"Through shared parameters what follows moves the first token: {constant.mean():.0%} of the gross "
        f"push is left under uniform weights, {divided.mean():.0%} under 1/|o|.",
        when=number.holds is False,
    )


def lengths_by_outcome(logp: np.ndarray) -> dict[str, np.ndarray]:
    """[R] mean length of right and of wrong answers, mean over prompts."""
    chance = chances(logp)
    return {
        name: (np.sum(chance * of * LENGTH, -1) / np.sum(chance * of, -1)).mean(-1)
        for name, of in (("right", FIRST), ("wrong", 1 - FIRST))
    }


def b2(world: World, claim: Claim) -> None:
    """Under 1/|o| right answers end shorter and wrong ones longer than under constant weights.

    The reward is 1 for a first token, another one for each prompt, and does not read lengths; r − r̄, exact
    updates, SGD and AdamW, at rates that raise J by .01 in the first step. Lengths where J is .9, less those
    under constant weights where J is .9, and then these less those of the start.

    Refuted if right answers are longer or wrong ones shorter (99.9 %): the sign, by which a draft's margin of
    .1 tokens gave way after a first run of 8 seeds, as it is the claim's for answers of one to six tokens and
    these have two to four. A row of ours, that constant weights leave lengths alone, keeps it: refuted if
    either moves by .1.
    """
    row = claim.ours("Under constant weights the lengths of right and wrong answers stay.")
    moved: list[float] = []
    for name, optimizer in OPTIMIZERS.items():
        ends = {}
        for divided in (False, True):

            def rule(old: np.ndarray, now: np.ndarray, divided: bool = divided) -> np.ndarray:
                return update(old, now, FIRST, divided=divided)

            rate = pace(world, rule, optimizer, FIRST)
            path = train(world, rule, optimizer, rate, world.steps(150))
            ends[divided] = lengths_by_outcome(at(path.logp, reached(path.returns(FIRST), 0.9)))
        begin = lengths_by_outcome(world.listed(world.start))
        for outcome, sign in (("right", -1), ("wrong", 1)):
            effect = sign * (ends[True][outcome] - ends[False][outcome])
            claim.refutes(
                f"{name}: tokens by which {outcome} answers are {'longer' if sign > 0 else 'shorter'}",
                mean(effect, expected=0.0, relation="at least"),
            )
            drift = ends[False][outcome] - begin[outcome]
            row.refutes(f"{name}: tokens, {outcome} answers", mean(drift, expected=0.0, tolerance=0.1))
            moved.append(float(drift.mean()))
    row.finds(
        f"Lengths move by {min(moved):+.2f} to {max(moved):+.2f} tokens under constant weights.",
        when=any(n.holds is False for n in row.numbers.values()),
    )


def variation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[R] total variation between two laws of answers, the worst prompt's."""
    return 0.5 * np.abs(chances(one) - chances(other)).sum(-1).max(-1)


def b3(world: World, claim: Claim) -> None:
    """AdamW makes training insensitive to the scale of the reward.

    Graded rewards times 1/64, 1 and 64; r − r̄, constant weights, exact updates, ε = 1e-8, 60 steps that
    begin by raising J by .01 at scale 1.

    Refuted if at a factor of 64 either way trained policies are .005 away in total variation (the claim's own
    margin), worst prompt, mean over starts (99.9 %): by the worst start the verdict turned with the draw of
    starts, for the table, too. It is told. SGD, a control, must be .1 away on average.
    """

    def trained(optimizer: gj.optimizers.Optimizer, scale: float) -> np.ndarray:
        def rule(old: np.ndarray, now: np.ndarray) -> np.ndarray:
            return scale * update(old, now, GRADED)

        rate = pace(world, lambda old, now: update(old, now, GRADED), optimizer, GRADED)
        return train(world, rule, optimizer, rate, world.steps(60)).logp[-1]

    plain = trained(ADAMW, 1.0)
    for told, scale in (("1/64", 1 / 64), ("64", 64.0)):
        moved = variation(trained(ADAMW, scale), plain)
        claim.refutes(f"AdamW: variation at a scale of {told}", mean(moved, expected=0.0, tolerance=0.005))
        claim.reports(f"AdamW: variation at a scale of {told}, worst start", Number(float(moved.max())))
    control = variation(trained(SGD, 1 / 64), trained(SGD, 1.0))
    claim.requires("SGD: variation at 1/64", mean(control, expected=0.1, relation="at least"))


def b4(world: World, claim: Claim) -> None:
    """Momentum goes on where the gradient is zero: AdamW moves the policy by at least one more live step.

    As past a clip that holds every token, or on batches where every group ties: 12 live steps at the rate
    that raises J by .01 at first, then 40 updates on zero gradient; travel is total variation of the law
    of answers, in units of the last live step, worst prompt.

    Refuted if AdamW at (0.9, 0.999) goes on by less than one live step (the claim's own rule), mean over
    starts. SGD, a control, must stay (1e-12), and with ε = 0 each update must be C_{T,k} of the last live one
    in the parameters (1e-6 relative).
    """
    live, idle = 12, 40
    exact = gj.AdamW(learning_rate=1.0, eps=0.0)
    still = np.zeros_like(world.listed(world.start))
    for name, optimizer in {**OPTIMIZERS, "AdamW, ε = 0": exact}.items():
        rate = pace(world, shift, optimizer, BINARY)
        before = train(world, shift, optimizer, rate, live - 1)
        last = train(world, shift, optimizer, rate, 1, start=before.params, state=before.state)
        rest = {"start": last.params, "state": last.state}
        after = train(world, lambda old, now: still, optimizer, rate, idle, **rest)
        travel = variation(after.logp[-1], last.logp[-1]) / variation(last.logp[-1], before.logp[-1])
        if name == "AdamW":
            number = mean(travel, expected=1.0, relation="at least")
            claim.refutes("AdamW: live steps that it goes on by", number)
            claim.finds(f"It goes on by {travel.mean():.1f} live steps.", when=number)
        elif name == "SGD":
            claim.requires("SGD: live steps that it goes on by", worst(travel, tolerance=1e-12))
        else:
            one = train(world, lambda old, now: still, optimizer, rate, 1, **rest)
            step, coast = last.params - before.params, one.params - last.params
            ratio = np.sum(step * coast, 1) / np.sum(step**2, 1)
            first = worst(ratio / carried(live + 1), expected=1.0, tolerance=1e-6)
            claim.requires("ε = 0: first idle update over C_{T,0}", first)


def carried(count: int, k: int = 0, b1: float = 0.9, b2: float = 0.999) -> float:
    """C_{T,k} of Proposition 7, T the count of the first step on zero gradient."""
    first = b1 ** (k + 1) * (1 - b1 ** (count - 1)) / (1 - b1 ** (count + k))
    return first * np.sqrt((1 - b2 ** (count + k)) / (b2 ** (k + 1) * (1 - b2 ** (count - 1))))


def value(
    logp: np.ndarray, rewards: np.ndarray, reference: np.ndarray, *, divided: bool, beta: float
) -> np.ndarray:
    """[R] the expected surrogate at θ_old = θ: Σ_t α A over tokens less β k3, mean over prompts."""
    alpha = 1 / LENGTH if divided else np.full(len(LENGTH), 1 / MEAN_LENGTH)
    chance = chances(logp)
    gain = np.sum(update(logp, logp, rewards).sum(-1) * logp.shape[1] * alpha, -1)
    gap = (reference - logp) * MASK
    penalty = np.sum(chance * np.sum((np.exp(gap) - gap - 1) * MASK, -1) * alpha, -1)
    return (gain - beta * penalty).mean(-1)


def b5(world: World, claim: Claim) -> None:
    """The surrogate's value is no meter of progress: over training it does not follow the true return.

    Graded rewards, r − r̄, exact updates with SGD and AdamW, 80 steps that begin by raising J by .01: the
    value at θ_old under 1/|o| with k3 at β = .04, which is −β E[R], and under constant weights, which is
    the covariance of advantage and length. Each run's correlation with J over training.

    Refuted if a mean correlation is not within .5 of 0 (99.9 %; the rule of the claim's row on training: a
    value that goes against the reward is a meter, too, read backwards). That under 1/|o| without a penalty
    the value is 0 is a check (1e-12).
    """
    reference = world.listed(world.start)
    bare = value(reference, GRADED, reference, divided=True, beta=0.0)
    claim.requires("1/|o|, no penalty: value", worst(bare, tolerance=1e-12))
    seen = []
    for name, optimizer in OPTIMIZERS.items():

        def rule(old: np.ndarray, now: np.ndarray) -> np.ndarray:
            return update(old, now, GRADED)

        path = train(world, rule, optimizer, pace(world, rule, optimizer, GRADED), world.steps(80))
        truth = path.returns(GRADED)
        for told, divided, beta in (("1/|o|, k3", True, 0.04), ("constant", False, 0.0)):
            values = np.stack([value(x, GRADED, reference, divided=divided, beta=beta) for x in path.logp])
            follows = [np.corrcoef(a, b)[0, 1] for a, b in zip(values.T, truth.T, strict=True)]
            number = mean(follows, expected=0.0, tolerance=0.5)
            claim.refutes(f"{name}, {told}: correlation with J", number)
            seen.append(f"{number.value:+.2f} ({name}, {told})")
    claim.finds(f"Its correlation with J over training is {', '.join(seen)}.")


def b6(world: World, claim: Claim) -> None:
    """With one step on a batch the clip never acts: GRPO clipped at .2 and not at all are equal to the bit.

    The library's expected gradient of the surrogate through the policy, σ-normalised, at θ_old = θ: four
    starts as they are, and after 20 steps of training. Control: at θ after one such run, θ_old the start,
    it must act.

    Refuted if one number differs. The control must differ by 1e-6.
    """
    trained = train(world, shift, SGD, pace(world, shift, SGD, BINARY), 20).params
    gaps, apart = [], []
    for run in world.few(4):
        for params in (world.start[run], trained[run]):
            pair = [surrogate.gradient(world, BINARY, params, clip=c) for c in (0.2, surrogate.UNCLIPPED)]
            gaps.append(np.abs(pair[0] - pair[1]).max())
        moved = {"params": trained[run], "old": world.start[run]}
        pair = [surrogate.gradient(world, BINARY, **moved, clip=c) for c in (0.2, surrogate.UNCLIPPED)]
        apart.append(np.abs(pair[0] - pair[1]).max())
    claim.refutes("greatest difference in the gradient", Number(float(max(gaps)), 0.0, 0.0))
    claim.requires("off-policy: difference", Number(float(min(apart)), 1e-6, relation="at least"))
