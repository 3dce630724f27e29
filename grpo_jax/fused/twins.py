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
    if getattr(real, "jaxpr", real) is not real:  # closed; newer versions of JAX have one kind for both
        return twin.replace(jaxpr=marked(real.jaxpr, twin.jaxpr, questions), consts=real.consts)
    pair = _Pair(questions)
    require(len(real.constvars) == len(twin.constvars) and len(real.eqns) == len(twin.eqns))
    pair.declare([*real.constvars, *real.invars], [*twin.constvars, *twin.invars])
    eqns = [pair.equation(ours, theirs) for ours, theirs in zip(real.eqns, twin.eqns, strict=True)]
    consts = {"consts": real.consts} if hasattr(real, "consts") else {}
    return twin.replace(eqns=eqns, outvars=pair.read(real.outvars, twin.outvars), **consts)


class _Pair:
    """The variables of two traces, each of the one with that of the other which stands in its place."""

    def __init__(self, questions: int) -> None:
        self.questions = questions
        self._places: dict[Any, Any] = {}

    def declare(self, ours: Sequence[Any], theirs: Sequence[Any]) -> None:
        """New variables, of one type and of shapes that differ in questions only."""
        require(len(ours) == len(theirs))
        for a, b in zip(ours, theirs, strict=True):
            require(a.aval.dtype == b.aval.dtype)
            matched(tuple(a.aval.shape), tuple(b.aval.shape), self.questions)
            self._places[a] = b

    def read(self, ours: Sequence[Any], theirs: Sequence[Any]) -> list[Any]:
        """What the twin reads, with our numbers."""
        require(len(ours) == len(theirs))
        return [self._atom(a, b) for a, b in zip(ours, theirs, strict=True)]

    def _atom(self, ours: Any, theirs: Any) -> Any:
        if isinstance(ours, Literal):
            require(isinstance(theirs, Literal))
            return ours
        require(self._places[ours] is theirs)
        return theirs

    def equation(self, ours: Any, theirs: Any) -> Any:
        """The twin's equation with our numbers."""
        require(ours.primitive is theirs.primitive and ours.params.keys() == theirs.params.keys())
        params = {
            name: value if name in UNREAD else matched(ours.params[name], value, self.questions)
            for name, value in theirs.params.items()
        }
        read = self.read(ours.invars, theirs.invars)
        self.declare(ours.outvars, theirs.outvars)
        return theirs.replace(invars=read, params=params)


def matched(real: Any, twin: Any, questions: int) -> Any:
    """A parameter of the twin with the real one's numbers in its traces; extents are entries of tuples."""
    if hasattr(getattr(real, "jaxpr", real), "eqns"):
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
