"""Sizes that follow from a configuration's numbers alone: tied groups, filters, masks, weights of answers.

Plain float64, whatever JAX is set to. What a claim of this package measures is named by it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray
from scipy.special import ndtr

from grpo_jax.theory.checks import check_group_size, check_nonnegative, check_positive, check_probability

Array = NDArray[np.float64]


class Kept(NamedTuple):
    """What a bound on an importance weight leaves of a batch."""

    answers: Array
    """[...] share of the sampler's answers whose weight stays within the bound."""
    weight: Array
    """[...] share of the update's weight that they carry: E_q[w; w <= cap]."""


def tied_share(success: ArrayLike, *, group_size: int) -> Array:
    """t = p^G + (1 - p)^G: how often the G binary rewards of a group are all equal (E4).

    Args:
      success: [...] p in [0, 1].
      group_size: G >= 2.

    >>> float(tied_share(0.5, group_size=2))
    0.5
    """
    check_probability("success", success)
    check_group_size(group_size)
    p = np.asarray(success, float)
    return p**group_size + (1 - p) ** group_size


def refill_price(success: ArrayLike, *, group_size: int, tries: float = math.inf) -> Array:
    """(1 - t^k)/(1 - t): groups drawn for one that is kept, where a tied group is drawn anew k times at most.

    Each mixed group counts as much more often (E4): towards 1/P(mixed).

    Args:
      success: [...] p in (0, 1).
      group_size: G >= 2.
      tries: k >= 1, or ``math.inf``.

    >>> float(refill_price(0.5, group_size=2))
    2.0
    """
    check_positive("tries", tries, "a group is drawn once at least")
    tie = tied_share(success, group_size=group_size)
    if np.any(tie >= 1):
        raise ValueError(f"success is {success}: a prompt with one outcome is never mixed")
    return (1 - tie**tries) / (1 - tie)


def kept_at_least(top_p: ArrayLike, *, tokens: ArrayLike) -> Array:
    """top_p^T: the least probability mass that answers of T tokens keep under top-p (D1).

    A filter keeps S >= top_p of every token's distribution, S towards top_p where tokens are many and small.
    E_q[pi/q] = S at a token and the product of S over an answer.

    >>> float(kept_at_least(0.9, tokens=2))
    0.81
    """
    check_probability("top_p", top_p)
    check_nonnegative("tokens", tokens)
    return np.asarray(top_p, float) ** np.asarray(tokens, float)


def bounded_weight(chi2: ArrayLike, *, tokens: ArrayLike, cap: ArrayLike) -> Kept:
    """What a cap leaves of products of T ratios, under a normal law of their logarithm (C4, D3).

    With chi^2 alike at every token E_q[w^2] = (1 + chi^2)^T exactly; a normal log w with E_q[w] = 1 and this
    second moment has variance v = T log(1 + chi^2) and mean -v/2, so that

        P_q(w <= c) = Phi(log c/s + s/2),      E_q[w; w <= c] = Phi(log c/s - s/2),      s = sqrt(v).

    The law is a model (the exact one depends on the policies); the second moment is not.

    Args:
      chi2: [...] chi^2 of one token, > 0.
      tokens: [...] T, > 0.
      cap: [...] the greatest weight, > 0.

    >>> kept = bounded_weight(1e-4, tokens=100, cap=3.0)
    >>> bool(kept.weight > 0.999)
    True
    """
    check_positive("chi2", chi2, "without a mismatch every weight is 1")
    check_positive("tokens", tokens, "an answer has a token")
    check_positive("cap", cap, "a cap of 0 drops everything")
    s = np.sqrt(np.asarray(tokens, float) * np.log1p(np.asarray(chi2, float)))
    bound = np.log(np.asarray(cap, float)) / s
    return Kept(ndtr(bound + s / 2), ndtr(bound - s / 2))


def stop_pressure(cut_off: ArrayLike, *, masked: bool, votes: bool = True) -> Array:
    """How hard an update pushes answers to end within the budget, 1 without a mask (E6).

    The update is a grad E[r | ends] + b grad P(ends); b is f E[r | ends] without a mask, as much times the
    share cut off where masked answers count in the group's mean, and 0 where they do not.

    Args:
      cut_off: [...] share of answers that the budget cuts off, in [0, 1].
      masked: they are left out of the loss.
      votes: their rewards count in the group's mean.

    >>> float(stop_pressure(0.1, masked=True))
    0.1
    """
    check_probability("cut_off", cut_off)
    share = np.asarray(cut_off, float)
    if not masked:
        return np.ones_like(share)
    return share if votes else np.zeros_like(share)


def at_temperature(success: ArrayLike, temperature: ArrayLike) -> Array:
    """Probability at temperature 1 of one of two answers that has ``success`` at ``temperature`` (D2).

    Log-odds at temperature tau are the logits' difference over tau: sigmoid(tau logit p).

    >>> float(at_temperature(0.9, 1.0))
    0.9
    """
    check_probability("success", success)
    check_positive("temperature", temperature, "greedy decoding is its limit")
    p, tau = np.asarray(success, float), np.asarray(temperature, float)
    with np.errstate(divide="ignore"):
        return 1 / (1 + np.exp(-tau * (np.log(p) - np.log1p(-p))))
