"""The weight of every token of a batch by hand, answer after answer; nothing of the library's reductions."""

from __future__ import annotations

import itertools

import numpy as np

MEANS = ("sequence", "prompt", "batch", "micro-batches", "constant")


def token_weights(lengths: np.ndarray, mean: str, *, parts: int = 1) -> np.ndarray:
    """[P, N] weight of each token of an answer, from the answers' lengths [P, N].

    "sequence": 1/(P N |o|); "prompt": 1/(P Σ of the prompt); "batch": 1/Σ of all; "micro-batches": 1/(parts Σ
    of the part), prompts split in order; "constant": 1/(P N).
    """
    prompts, entries = lengths.shape
    found = np.empty(lengths.shape)
    for p, i in itertools.product(range(prompts), range(entries)):
        if mean == "sequence":
            found[p, i] = 1 / (prompts * entries * lengths[p, i])
        elif mean == "prompt":
            found[p, i] = 1 / (prompts * lengths[p].sum())
        elif mean == "batch":
            found[p, i] = 1 / lengths.sum()
        elif mean == "micro-batches":
            size = prompts // parts
            first = p // size * size
            found[p, i] = 1 / (parts * lengths[first : first + size].sum())
        else:
            found[p, i] = 1 / (prompts * entries)
    return found


def expected_update(
    chance: np.ndarray, lengths: np.ndarray, mean: str, *, group_size: int, parts: int = 1
) -> np.ndarray:
    """[P] expected derivative in the log-odds of the first token, over every joint batch of groups.

    Prompt p is answered rightly with probability ``chance[p]``, in ``lengths[p]`` tokens either way, of which
    the first alone decides; A = r − r̄.
    """
    prompts = len(chance)
    whole = np.repeat(np.asarray(lengths, float)[:, None], group_size, 1)
    weight = token_weights(whole, mean, parts=parts)
    found = np.zeros(prompts)
    for drawn in itertools.product((0.0, 1.0), repeat=prompts * group_size):
        right = np.array(drawn).reshape(prompts, group_size)
        law = np.where(right > 0, chance[:, None], 1 - chance[:, None]).prod()
        score = right - chance[:, None]
        found += law * (weight * (right - right.mean(1, keepdims=True)) * score).sum(1)
    return found
