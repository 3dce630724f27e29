"""From numbers to a verdict: what the paper says, whether that stands, and what we found instead.

A claim's `check(data, claim)` measures numbers and says with each what it is for:

    claim.requires("enumeration - engine", number)   # the instrument: without it nothing is decided
    claim.refutes("sampled - theory", number)         # the printed sentence falls if this fails
    claim.qualifies("AdamW", number, only="under SGD")  # a condition that the sentence does not state
    claim.reports("slope", number)                    # told, judges nothing
    claim.finds("AdamW settles at ...", when=number)  # a sentence of ours that holds if the number does

The verdict and its reason are computed; no script writes one by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from experiments.harness.numbers import Number, prefixed

VERDICTS = ("reproduced", "qualified", "refuted", "not testable here")
MEANING = {
    "reproduced": "the sentence holds as printed, within the margin that its script states beforehand",
    "qualified": "it holds, but only under a condition that the paper does not state; the condition is named",
    "refuted": "it fails; the number that shows it is named",
    "not testable here": "the source says too little, this size is too small to decide, or the check of our "
    "own instrument failed",
}
OURS = "Ours: "
"""How a sentence starts that is not the paper's."""


def whose(says: str) -> tuple[str, str]:
    """Whose sentence it is, Paper or Ours, and the sentence.

    >>> whose("Ours: it differs.")
    ('Ours', 'it differs.')
    """
    return ("Ours", says.removeprefix(OURS)) if says.startswith(OURS) else ("Paper", says)


@dataclass(frozen=True)
class Verdict:
    """What became of one sentence, why, what we found, and the numbers that say so."""

    verdict: str
    because: str
    found: str = ""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}; got {self.verdict!r}")
        if not self.because.strip():
            raise ValueError("a verdict needs its reason")


class Claim:
    """One sentence and the evidence on it, gathered number by number.

    Args:
      id: such as A5, or A5.1 for a row of ours beside it.
      says: the sentence that is judged.
    """

    def __init__(self, id: str, says: str) -> None:
        if not says.strip():
            raise ValueError(f"{id} does not say what is judged")
        self.id, self.says = id, says
        self.numbers: dict[str, Number] = {}
        self.roles: dict[str, str] = {}
        self.conditions: dict[str, str] = {}
        self.sentences: list[str] = []
        self.rows: list[Claim] = []

    def requires(self, name: str, number: Number | Mapping[str, Number]) -> None:
        """A check of the instrument: if it fails or is open, the sentence is not decided here."""
        self._add("requires", name, number)

    def refutes(self, name: str, number: Number | Mapping[str, Number]) -> None:
        """A number with which the sentence falls."""
        self._add("refutes", name, number)

    def qualifies(self, name: str, number: Number | Mapping[str, Number], *, only: str) -> None:
        """A number without which the sentence holds only under a condition: "only under SGD"."""
        if not only.strip():
            raise ValueError(f"{name!r} qualifies {self.id}: say under which condition it still holds")
        for key in self._add("qualifies", name, number):
            self.conditions[key] = only

    def reports(self, name: str, number: Number | Mapping[str, Number]) -> None:
        """A number that is told and judges nothing."""
        self._add("reports", name, number)

    def finds(self, sentence: str, *, when: bool | Number | Iterable[Number] = True) -> None:
        """A sentence of what we found, kept only if what it rests on holds."""
        if isinstance(when, Number):
            when = when.holds is True
        elif not isinstance(when, bool):
            when = all(number.holds is True for number in when)
        if when:
            self.sentences.append(sentence.strip())

    def also(self, says: str) -> Claim:
        """Another sentence of the same paper: a row of its own, judged by its own numbers."""
        row = Claim(f"{self.id}.{len(self.rows) + 1}", says)
        self.rows.append(row)
        return row

    def ours(self, says: str) -> Claim:
        """A sentence of ours beside the paper's: a row of its own, judged by its own numbers."""
        return self.also(f"{OURS}{says}")

    def _add(self, role: str, name: str, number: Number | Mapping[str, Number]) -> list[str]:
        given = {name: number} if isinstance(number, Number) else prefixed(name, number)
        if not given:
            raise ValueError(f"{name!r} of {self.id} holds no number")
        for key, value in given.items():
            if not isinstance(value, Number):
                raise TypeError(f"{key!r} of {self.id} is {value!r}; it must be a Number")
            if key in self.numbers:
                raise ValueError(f"{self.id} has two numbers called {key!r}")
            if role == "reports":
                value = replace(value, expected=None, tolerance=None, relation="equals")
            elif value.expected is None:
                raise ValueError(f"{key!r} judges nothing: nothing is expected of it")
            self.numbers[key], self.roles[key] = value, role
        return list(given)

    def verdict(self) -> Verdict:
        """The verdict that the numbers give.

        Not testable here if a number that is required does not hold; refuted if one that refutes fails; not
        testable here if one of these is undecided; qualified if one that qualifies fails; not testable here
        if one of those is undecided; else reproduced. The reason names every number that fails and every one
        that is undecided, whatever the verdict. ValueError where nothing could refute the sentence.

        >>> claim = Claim("A5", "The gap is zero.")
        >>> claim.refutes("gap", Number(0.25, expected=0, tolerance=0.1))
        >>> claim.verdict().because
        'Fails: gap is 0.25 (expected 0 ± 0.1).'
        """
        if "refutes" not in self.roles.values():
            raise ValueError(f"nothing here could refute {self.id}: give a number to refutes")
        lost, broken, limits = (self._pick(role, False) for role in ("requires", "refutes", "qualifies"))
        blind, unclear, open_ = (self._pick(role, None) for role in ("requires", "refutes", "qualifies"))
        would = "Would hold" if lost or blind or broken or unclear else "Holds"
        conditions = [self._tell(f"{would} only {self.conditions[name]}", [name]) for name in limits]
        told = [
            self._tell("Our own check fails", lost),
            self._tell("Fails" if not (lost or blind) else "Would fail", broken),
            *conditions,
            self._tell("Undecided at this size", [*blind, *unclear, *open_]),
        ]
        if lost or blind:
            verdict = "not testable here"
        elif broken:
            verdict = "refuted"
        elif unclear or (open_ and not limits):
            verdict = "not testable here"
        elif limits:
            verdict = "qualified"
            told.append(self._tell("It holds in", self._pick("refutes", True), most=4))
        else:
            verdict = "reproduced"
            judged = [name for name, role in self.roles.items() if role in ("refutes", "qualifies")]
            told.append(self._tell("Holds", judged, most=4))
        because = " ".join(sentence for sentence in told if sentence)
        return Verdict(verdict, because, " ".join(self.sentences), dict(self.numbers), dict(self.roles))

    def _pick(self, role: str, holds: bool | None) -> list[str]:
        return [n for n, number in self.numbers.items() if self.roles[n] == role and number.holds is holds]

    def _tell(self, start: str, names: list[str], *, most: int | None = None) -> str:
        if not names:
            return ""
        told = "; ".join(f"{name} is {self.numbers[name]}" for name in names[:most])
        more = len(names) - len(names[:most])
        return f"{start}: {told}{f'; and {more} more' if more else ''}."
