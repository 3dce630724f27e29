"""Small sequence tasks on which a bias can be seen: a reward is any function of the tokens.

Tokens are 0..V−1; the spaces made here let the last one end a sequence. A reward function takes the tuple of
tokens without the end-of-sequence token. For tails that do not see the prefix: ``policies.tree.share_rows``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from grpo_jax.sequences import Sequences
from grpo_jax.tasks.noise import Bernoulli, Noise
from grpo_jax.tasks.sequences import SequenceTable

Output = tuple[int, ...]


def free_length(*, vocab: int = 3, horizon: int = 6, prefix: int = 1) -> Sequences:
    """Sequences of any length from ``prefix`` + 1 on: EOS, the last token, is forbidden before."""
    return Sequences(
        vocab=vocab, horizon=horizon, eos=vocab - 1, forbidden=tuple((t, vocab - 1) for t in range(prefix))
    )


def shared_prefix(*, vocab: int = 3, horizon: int = 6, prefix: int = 2) -> Sequences:
    """A prefix of token 0 that every output shares, then suffixes of any length from one token on."""
    forced = tuple((t, token) for t in range(prefix) for token in range(1, vocab))
    return Sequences(vocab=vocab, horizon=horizon, eos=vocab - 1, forbidden=forced)


def outputs(space: Sequences) -> list[Output]:
    """Every output of the space without its EOS, in the support's order."""
    tokens, mask = space.support
    rows = (row[live > 0] for row, live in zip(tokens, mask, strict=True))
    return [tuple(int(t) for t in row if t != space.eos) for row in rows]


def tabulated(
    space: Sequences, *functions: Callable[[Output], float], noise: Noise | None = None
) -> SequenceTable:
    """A task from reward functions of the tokens, one for each context.

    >>> longest = tabulated(free_length(horizon=2), len)
    >>> longest.table.tolist()
    [[2.0, 2.0, 1.0, 2.0, 2.0, 1.0]]
    """
    listed = outputs(space)
    table = np.array([[float(function(output)) for output in listed] for function in functions])
    return SequenceTable(space=space, table=table, noise=noise)


def first_token(space: Sequences, *, right: int = 0) -> SequenceTable:
    """1 iff the first token is right: what follows does not matter, so whatever happens to it is a bias."""
    return tabulated(space, lambda output: output[0] == right)


def decision(space: Sequences, *, at: int, right: int = 0) -> SequenceTable:
    """1 iff the token at step ``at`` is right; an output that ends before has 0."""
    return tabulated(space, lambda output: len(output) > at and output[at] == right)


def final_answer(space: Sequences, *, right: int = 0) -> SequenceTable:
    """1 iff the last token before EOS is right: a chain of thought of any length, then an answer."""
    return tabulated(space, lambda output: len(output) > 0 and output[-1] == right)


def graded(space: Sequences, *, seed: int, noise: Noise | None = None) -> SequenceTable:
    """Rewards drawn uniformly from [0, 1] for every output; under ``Bernoulli()``, success probabilities."""
    table = np.random.default_rng(seed).uniform(size=(1, len(space.support[0])))
    return SequenceTable(space=space, table=table, noise=noise)


def placebo(space: Sequences, *, probability: float = 0.5) -> SequenceTable:
    """Rewards by the toss of a coin, whatever the output: nothing is to be learnt."""
    table = np.full((1, len(space.support[0])), probability)
    return SequenceTable(space=space, table=table, noise=Bernoulli())
