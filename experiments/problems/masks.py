"""What masking answers that are cut off makes of the expected update: the library's, and by closed forms."""

from __future__ import annotations

import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import truncation
from experiments.formulas.truncation import HANDLINGS, PLAIN, VOTING
from experiments.problems.budgets import GROUP, METHODS, Budget
from experiments.problems.updates import expected_update
from grpo_jax.policies import TreePolicy

SMALL = 3
"""Group and tokens where everything is enumerated."""
TOKENS = 4
"""The budget where the share that is cut off is chosen."""


def gaps() -> xr.DataArray:
    """Largest gaps of the library and of the closed form to the enumeration, on two unlike random trees."""
    rng = np.random.default_rng(1)
    space = gj.Sequences(vocab=3, horizon=SMALL, eos=2)
    logits = rng.normal(size=(2, space.offsets[-1], 3))
    trees = [truncation.tree(rows, SMALL) for rows in logits]
    levels = np.array([[0.0, 1.0, 0.3], [0.5, 0.5, 1.0]])
    table = np.take_along_axis(levels, rng.integers(0, 3, (2, space.size)), 1)
    table = np.where([t.finished for t in trees], table, 0)
    found = xr.DataArray(np.zeros((3, 2)), {"handling": list(HANDLINGS), "of": ["library", "closed form"]})
    for handling, method in METHODS.items():
        library = 2 * expected_update(method, space, logits, table, group_size=SMALL)
        for tree, rewards, own in zip(trees, table, library, strict=True):
            by_hand = truncation.enumerated(tree, rewards, SMALL, handling)
            closed = truncation.closed(tree, rewards, SMALL, handling)
            for of, update in {"library": own, "closed form": closed}.items():
                found.loc[handling, of] = max(float(found.loc[handling, of]), abs(update - by_hand).max())
    return found


def placebo() -> float:
    """Largest difference that a handling makes where the last token has to be the end."""
    space = gj.Sequences(vocab=3, horizon=3, eos=2, forbidden=((0, 2), (2, 0), (2, 1)))
    table = np.linspace(0, 1, space.size)[None]
    logits = TreePolicy.uniform(space).logits
    plain, *others = (expected_update(m, space, logits, table, group_size=GROUP) for m in METHODS.values())
    return float(max(abs(other - plain).max() for other in others))


def cut_off(share: float) -> truncation.Tree:
    """A tree of four tokens in which this share of the answers has no end."""
    logits = Budget(TOKENS, stop=1 - share ** (1 / (TOKENS - 1))).logits[0]
    return truncation.tree(with_end(logits), TOKENS)


def with_end(logits: np.ndarray) -> np.ndarray:
    """The logits without an end at the first token, as ``free_length`` forbids it."""
    rows = np.array(logits)
    rows[0, -1] = -np.inf
    return rows


def sine(share: float) -> float:
    """Of the angle between the voting update and ∇E[r | K] where this share is cut off and the first token
    decides."""
    tree = cut_off(share)
    rewards = np.array([1.0 * (output[0] == 0) for output in tree.outputs]) * tree.finished
    done, to_end = tree.mean(tree.finished), tree.slope(tree.finished)
    level = tree.mean(rewards) / done
    straight = ((tree.slope(rewards) - level * to_end) / done).ravel()
    voting = truncation.closed(tree, rewards, GROUP, VOTING).ravel()
    cosine = straight @ voting / np.linalg.norm(straight) / np.linalg.norm(voting)
    return float(np.sqrt(1 - cosine**2))


def pressure(share: float) -> float:
    """Length of the voting update over that without a mask, if any answer that ends is right."""
    tree = cut_off(share)
    rewards = np.ones(len(tree.outputs)) * tree.finished
    voting, plain = (truncation.closed(tree, rewards, GROUP, h) for h in (VOTING, PLAIN))
    return float(np.linalg.norm(voting) / np.linalg.norm(plain))
