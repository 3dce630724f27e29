"""What a run is asked to record, checked: which measures, of which iterations, each or averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from grpo_jax.bounds import check_length
from grpo_jax.config import Config
from grpo_jax.measures import DEFAULT, DIAGNOSTICS, Measure
from grpo_jax.part import nearest
from grpo_jax.types import HasMeans, support_of


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is recorded, and of which iterations; part of a program's identity."""

    measures: tuple[tuple[str, Measure], ...]
    every: int = 1
    """Every n-th iteration."""
    average_from: int | None = None
    """Recorded iterations from this one on are averaged inside the program; None keeps each of them."""
    start: bool = False
    """Whether the state before the first step is recorded, as iteration 0."""

    def named(self, per: str) -> dict[str, Measure]:
        """The measures taken per "iteration" or per "step"."""
        return {name: made for name, made in self.measures if made.per == per}

    def iterations(self, count: int) -> np.ndarray:
        """The iterations recorded in a run of ``count``."""
        kept = np.arange(self.every, count + 1, self.every)
        return np.concatenate([[0], kept]) if self.start else kept


def recording(
    config: Config,
    record: Iterable[str] | None,
    measure: Mapping[str, Any] | None,
    *,
    iterations: int,
    every: int = 1,
    average_from: float | None = None,
    start: bool = False,
) -> Recording:
    """What a run of ``config`` is asked to record; ValueError for unknown names and numbers out of range.

    Args:
      record: names of diagnostics; None is ``DEFAULT`` less what policy and task cannot say.
      measure: name -> ``Measure``, or a function of a ``View``.
      iterations: of the run; a multiple of ``every``.
      every: record every n-th iteration.
      average_from: average what is recorded from this iteration on (whole), or from this share of the run on
        (a fraction in [0, 1)).
      start: record the state before the first step, too.
    """
    check_length(iterations, every)
    if average_from is not None and start:
        raise ValueError(
            "record_start=True keeps a state of its own; with average_from= nothing is kept apart"
        )
    found = _diagnostics(record, config) | _own(measure)
    first = None if average_from is None else _first(average_from, iterations)
    return Recording(tuple(found.items()), int(every), first, bool(start))


def _diagnostics(record: Iterable[str] | None, config: Config) -> dict[str, Measure]:
    if record is None:
        contexts = config.policy.contexts
        listable = contexts is not None and support_of(config.policy, np.arange(contexts)) is not None
        unknown = set() if isinstance(config.task, HasMeans) else {"expected_reward"}
        return {
            n: DIAGNOSTICS[n]
            for n in DEFAULT
            if n not in unknown and (listable or not DIAGNOSTICS[n].enumerates)
        }
    if isinstance(record, (str, bytes)) or not isinstance(record, Iterable):
        raise TypeError(f"record is {record!r}; it must be a list of names")
    names = tuple(record)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"record names diagnostics; {name!r} is no name (measure= takes functions)")
        if name not in DIAGNOSTICS:
            raise ValueError(f"unknown diagnostic {name!r}; {nearest(name, DIAGNOSTICS)}")
    return {name: DIAGNOSTICS[name] for name in dict.fromkeys([*names, "finite"])}


def _own(measure: Mapping[str, Any] | None) -> dict[str, Measure]:
    if measure is None:
        return {}
    if not isinstance(measure, Mapping):
        raise TypeError(f"measure is {measure!r}; it must map names to functions of a view")
    found = {}
    for name, given in measure.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"the measure {name!r} must have a name that is an identifier, such as 'policy'")
        if name in DIAGNOSTICS:
            raise ValueError(f"a measure of one's own cannot be called {name!r}: a diagnostic has that name")
        if not callable(given):
            raise TypeError(f"the measure {name!r} is {given!r}; it must be a function of a view")
        found[name] = given if isinstance(given, Measure) else Measure(given)
    return found


def _first(average_from: float, iterations: int) -> int:
    whole = isinstance(average_from, (int, np.integer)) and not isinstance(average_from, bool)
    if not whole and not isinstance(average_from, (float, np.floating)):
        raise TypeError(f"average_from is {average_from!r}; it must be an iteration or a share of the run")
    if not whole and not 0 <= average_from < 1:
        raise ValueError(f"average_from is {average_from}; as a share of the run it must lie in [0, 1)")
    first = int(average_from) if whole else int(np.floor(average_from * iterations)) + 1
    if not 0 <= first <= iterations:
        raise ValueError(f"average_from is {average_from}; it must lie in the {iterations} iterations")
    return first
