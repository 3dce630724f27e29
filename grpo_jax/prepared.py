"""Parameters that travel with what everyone who scores by them would compute of them first.

A table's softmax is read where groups are drawn, where they are scored, and by the first optimizer step: made
once, when the parameters are, it is a third less to exponentiate.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from grpo_jax.types import Params


class Prepared(NamedTuple):
    """What a policy that ``Prepares`` takes in the place of its parameters."""

    params: Params
    known: Any
    """What was computed of them; constants, whose derivatives its policy knows."""


@runtime_checkable
class Prepares(Protocol):
    """A policy that scores by ``Prepared`` parameters, too, and to the bit as by plain ones."""

    def prepared(self, params: Params) -> Params | Prepared:
        """``Prepared``, or the parameters themselves where nothing is gained."""


def prepared(policy: Any, params: Params) -> Params | Prepared:
    """The parameters, prepared where the policy can. Any shapes."""
    return policy.prepared(params) if isinstance(policy, Prepares) else params


def plain(params: Params | Prepared) -> Params:
    """The parameters alone. Any shapes."""
    return params.params if isinstance(params, Prepared) else params


def at(place: Params | Prepared, params: Params) -> Params | Prepared:
    """What ``place`` is, with parameters of the same value to be differentiated by. Any shapes."""
    return place._replace(params=params) if isinstance(place, Prepared) else params


def like(place: Params | Prepared, policy: Any, params: Params) -> Params | Prepared:
    """Other parameters, prepared where ``place`` is. Any shapes."""
    return prepared(policy, params) if isinstance(place, Prepared) else params
