"""[A] for sequences: the fixed point at every prompt and prefix."""

from __future__ import annotations

import numpy as np

from experiments.harness.numbers import Number, worst
from experiments.harness.verdict import Claim
from experiments.transfer import surrogate
from experiments.transfer.enumeration import chances, group_law, through, update
from experiments.transfer.policies import ALLOWED, MASK, World, table_of
from experiments.transfer.tasks import BINARY

BETA = 1.0
STEPS, RUNS = 400, 2
STEP, RIDGE, REACH, DONE = 0.3, 1e-4, 0.3, 1e-10


def penalised(logp: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """[R, C, S, T] weights of GRPO's on-policy update (σ-normalised, constant weights) less β k3."""
    pull = chances(logp)[..., None] * (1 - np.exp((reference - logp) * MASK)) * MASK / logp.shape[1]
    return update(logp, logp, BINARY, normalized=True) - BETA * pull


def residual(logp: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """[R, C, nodes, V] (11) at every prompt and prefix: its left side less π_ref."""
    advantage = np.add(*group_law(logp, BINARY, normalized=True))
    reach = through(logp, np.ones_like(advantage))
    preference = np.where(ALLOWED, through(logp, advantage) / np.where(reach > 0, reach, 1), 0)
    policy, anchor = table_of(logp), table_of(reference)
    centred = preference - np.sum(policy * preference, -1, keepdims=True)
    return (1 - centred / BETA) * policy - anchor


def stationary(world: World, start: np.ndarray) -> np.ndarray:
    """[R, D] where natural steps end: (F + λ)⁻¹ times the update, F Fisher's matrix; zeros are the update's.

    λ falls with the update (Levenberg and Marquardt), and no step moves a log π by more than `REACH`.
    """
    reference, params = world.listed(start), start
    live = np.flatnonzero(np.broadcast_to(MASK > 0, reference.shape[1:]))
    for _ in range(STEPS):
        logp = world.listed(params)
        wanted, moves = penalised(logp, reference), []
        for run, at in enumerate(params):
            jacobian = world.jacobian(at).reshape(-1, params.shape[1])[live]
            scale = np.sqrt((chances(logp)[run][..., None] * MASK / logp.shape[1]).ravel()[live])
            rows, target = jacobian * scale[:, None], wanted[run].ravel()[live] / scale
            kernel = rows @ rows.T
            along = rows.T @ target
            ridge = np.linalg.norm(along) * RIDGE * np.trace(kernel) * np.eye(len(kernel))
            move = rows.T @ np.linalg.solve(kernel + ridge, target)
            moves.append(move * min(STEP, REACH / np.abs(jacobian @ move).max()))
        params = params + np.stack(moves)
        if np.abs(world.pull(params, penalised(world.listed(params), reference))).max() < DONE:
            break
    return params


def a4(world: World, claim: Claim) -> None:
    """GRPO's stationary policies satisfy (11) at every prompt and prefix: [1 - (P(a|s) - E P(·|s))/β] π(a|s)
    = π_ref(a|s).

    k3 at β = 1, groups of 8, σ-normalised, constant weights, no clip; P(a|s) is the expected advantage of
    an answer that goes from prefix s to a. Stationary is where the projected update, Σ W ∇log π,
    vanishes; natural steps, whose zeros are the same, go there from two starts.

    Refuted if there (11) is anywhere missed by 1e-6 (the claim's own margin). That the library's expected
    gradient of the surrogate vanishes there (1e-4) and is the enumerated one (1e-9) are checks of the
    instrument; where it does not vanish the sentence is not decided.
    """
    start = world.start[world.few(RUNS)]
    found = stationary(world, start)
    reference = world.listed(start)
    logp = world.listed(found)
    own = [
        surrogate.gradient(world, BINARY, at, reference=begin, kl_coef=BETA)
        for at, begin in zip(found, start, strict=True)
    ]
    hand = world.pull(found, penalised(logp, reference))
    claim.requires("the library's gradient - by enumeration", worst(own, expected=hand, tolerance=1e-9))
    claim.requires("the library's gradient where training ends", worst(own, tolerance=1e-4))
    missed = residual(logp, reference)
    number = worst(missed, tolerance=1e-6)
    claim.refutes("(11): left side less π_ref", number)
    rank = int(np.linalg.matrix_rank(world.jacobian(start[0]).reshape(-1, start.shape[1])))
    free = int((ALLOWED.sum(1) - 1).sum()) * logp.shape[1]
    left = float(np.abs(hand).max())
    claim.reports("directions in which the policy can move at its start", Number(float(rank)))
    claim.reports("the update's projection where training ends", Number(left))
    claim.finds(
        f"The policy can move in {rank} directions, all that a table has.",
        when=rank == free,
    )
    claim.finds(
        f"It moves in {rank} of a table's {free} directions only. Training runs off to saturated units: "
        f"where the update's projection is {left:.1g}, (11) is missed by {np.abs(missed).max():.2g}.",
        when=number.holds is False and rank < free,
    )
