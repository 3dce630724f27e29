"""Where an answer's numbers come from: a formula of the package, what `check` finds, or the ledger's words.

Nothing else can fill the braces of an answer's sentence, so that no number on the page is typed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from docs.generate.text import plain
from grpo_jax import theory
from grpo_jax.check import check

Ledger = Mapping[str, Mapping[str, Any]]


class Source(Protocol):
    """What fills a sentence, and how a reader gets the same."""

    def values(self, ledger: Ledger) -> dict[str, Any]:
        """By the names that stand in the sentence's braces."""
        ...

    @property
    def told(self) -> str:
        """In Markdown."""
        ...


@dataclass(frozen=True)
class Formula:
    """``{value}`` is a function's result, or a field of it; its arguments stand under their names."""

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    field: str = ""

    def values(self, ledger: Ledger) -> dict[str, Any]:
        """The function at its arguments, in float64."""
        with jax.enable_x64(True):
            result = self.function(**self.arguments)
            return {**self.arguments, "value": float(getattr(result, self.field) if self.field else result)}

    @property
    def told(self) -> str:
        """The call."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        field = f".{self.field}" if self.field else ""
        name = self.function.__name__
        module = "grpo_jax.theory" if name in theory.__all__ else self.function.__module__
        return f"`{module}.{name}({given}){field}`"


def formula(function: Callable[..., Any], field: str = "", **arguments: Any) -> Formula:
    """The function at these arguments."""
    return Formula(function, arguments, field)


@dataclass(frozen=True)
class Hazard:
    """``{says}``, ``{what}`` and ``{size}`` are what ``check`` finds under this name in TRL's settings."""

    name: str
    options: Mapping[str, Any]

    def values(self, ledger: Ledger) -> dict[str, Any]:
        """The finding, which must be there."""
        found = {finding.name: finding for finding in check(self._text, library="trl").findings}
        if self.name not in found:
            raise LookupError(f"{self._text!r} has no hazard {self.name}; it has {', '.join(found)}")
        finding = found[self.name]
        return {"says": finding.says, "what": finding.what, "size": finding.size}

    @property
    def _text(self) -> str:
        return "".join(f"{name}: {str(value).lower()}\n" for name, value in self.options.items())

    @property
    def told(self) -> str:
        """The settings that it was asked for."""
        return f"`python -m grpo_jax check` on `{self._text.strip().replace(chr(10), ', ')}`"


def hazard(name: str, **options: Any) -> Hazard:
    """What ``check`` finds in these options of TRL's."""
    return Hazard(name, options)


@dataclass(frozen=True)
class Row:
    """The pattern's named groups, found in what the ledger's row says (``found``, or ``because``)."""

    id: str
    pattern: str
    part: str = "found"

    def values(self, ledger: Ledger) -> dict[str, Any]:
        """The groups as they are printed there; a row that no longer says it is an error."""
        match = re.search(self.pattern, ledger[self.id][self.part])
        if match is None:
            raise LookupError(f"{self.id} no longer says {self.pattern!r}: {ledger[self.id][self.part]!r}")
        return match.groupdict()

    @property
    def told(self) -> str:
        """The row."""
        return f"row {self.id} of the ledger"


@dataclass(frozen=True)
class Several:
    """``{name_value}`` is ``{value}`` of the source of that name; all must say what they say."""

    sources: Mapping[str, Source]

    def values(self, ledger: Ledger) -> dict[str, Any]:
        """Of all of them, each behind its name."""
        return {
            f"{name}_{key}": value
            for name, source in self.sources.items()
            for key, value in source.values(ledger).items()
        }

    @property
    def told(self) -> str:
        """All of them, once each."""
        return ", ".join(dict.fromkeys(source.told for source in self.sources.values()))


def several(**sources: Source) -> Several:
    """These together."""
    return Several(sources)


@dataclass(frozen=True)
class Question:
    """What people ask, a sentence whose numbers a source fills in, and the claims that show it."""

    about: str
    ask: str
    says: str
    source: Source
    claims: tuple[str, ...]

    def answer(self, ledger: Ledger, shown: Callable[[str], str] = plain) -> str:
        """The sentence in Markdown, with its numbers; ``shown`` is what becomes of a source's own words."""
        values = self.source.values(ledger)
        said = {name: shown(value) if isinstance(value, str) else value for name, value in values.items()}
        sentence = self.says.format(**said)
        return sentence[0].upper() + sentence[1:] if self.says.startswith("{") else sentence
