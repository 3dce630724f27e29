"""Which axis is that of questions: a step is traced twice, with their number and with a prime in its place.

Extents alone do not tell, where there are as many questions as actions or answers. If the two traces are one
program, operation by operation, whose extents differ by nothing but the prime in the place of the number,
then an axis with the prime is that of questions wherever it stands. Numbers that depend on how many questions
there are (1/(Q G), say) are the first trace's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import Literal

from grpo_jax.fused.arrays import QUESTIONS, NoLanesError, asks

UNREAD = ("fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_fun", "name", "out_trees")
"""Parameters of calls on which no value depends."""


def marked(real: Any, twin: Any, questions: int) -> Any:
    """The trace ``twin`` with the numbers of ``real``; NoLanesError unless they are one program.

    Args:
      real: a trace, closed or not, with the real number of questions.
      twin: the same with ``QUESTIONS`` of them.
      questions: the real number.
    """
    if hasattr(real, "consts"):
        return twin.replace(jaxpr=marked(real.jaxpr, twin.jaxpr, questions), consts=real.consts)
    places: dict[Any, Any] = {}

    def declare(ours: Sequence[Any], theirs: Sequence[Any]) -> None:
        require(len(ours) == len(theirs))
        pairs: list[tuple[Any, Any]] = list(zip(ours, theirs, strict=True))
        for a, b in pairs:
            require(a.aval.dtype == b.aval.dtype)
            matched(tuple(a.aval.shape), tuple(b.aval.shape), questions)
            places[a] = b

    def atom(a: Any, b: Any) -> Any:
        if isinstance(a, Literal):
            require(isinstance(b, Literal) and a.aval.dtype == b.aval.dtype and a.aval.shape == b.aval.shape)
            return a
        require(places[a] is b)
        return b

    def atoms(ours: Sequence[Any], theirs: Sequence[Any]) -> list[Any]:
        require(len(ours) == len(theirs))
        return [atom(a, b) for a, b in zip(ours, theirs, strict=True)]

    declare([*real.constvars, *real.invars], [*twin.constvars, *twin.invars])
    require(len(real.constvars) == len(twin.constvars) and len(real.eqns) == len(twin.eqns))
    eqns = []
    for ours, theirs in zip(real.eqns, twin.eqns, strict=True):
        require(ours.primitive is theirs.primitive and ours.params.keys() == theirs.params.keys())
        read = {name: value for name, value in theirs.params.items() if name not in UNREAD}
        params = {name: matched(ours.params[name], value, questions) for name, value in read.items()}
        eqns.append(
            theirs.replace(invars=atoms(ours.invars, theirs.invars), params={**theirs.params, **params})
        )
        declare(ours.outvars, theirs.outvars)
    return twin.replace(eqns=eqns, outvars=atoms(real.outvars, twin.outvars))


def matched(real: Any, twin: Any, questions: int) -> Any:
    """A parameter of the twin with the real one's numbers in its traces; extents are entries of tuples."""
    if hasattr(real, "eqns") or hasattr(real, "consts"):
        return marked(real, twin, questions)
    if isinstance(real, (tuple, list)):
        require(len(real) == len(twin))
        entries = [_entry(a, b, questions) for a, b in zip(real, twin, strict=True)]
        return type(twin)(*entries) if hasattr(twin, "_fields") else type(twin)(entries)
    require(real is twin or bool(real == twin))
    return twin


def _entry(real: Any, twin: Any, questions: int) -> Any:
    """``matched`` of an entry of a tuple, which may be an extent."""
    if type(twin) is int and asks(twin):
        require(real == twin // QUESTIONS * questions)
        return twin
    return matched(real, twin, questions)


def require(same: bool) -> None:
    """NoLanesError unless ``same``."""
    if not same:
        raise NoLanesError("its trace is another one with another number of questions")
