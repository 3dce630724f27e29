"""Paste a configuration, get told what it does: the method it amounts to, and every hazard with its size.

>>> found = check("num_generations: 8\\nbeta: 0.04\\nloss_type: grpo")
>>> found.setting.library, found.worst.word
('trl', 'hazard')
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from grpo_jax.check.hazards import HAZARDS, Finding, Level, findings
from grpo_jax.check.libraries import LIBRARIES, library_of
from grpo_jax.check.reading import Source, parsed, read
from grpo_jax.check.setting import Circumstances, Setting, settled

__all__ = [
    "HAZARDS",
    "LIBRARIES",
    "Checked",
    "Circumstances",
    "Finding",
    "Level",
    "Setting",
    "Source",
    "check",
    "check_file",
    "findings",
]


class Checked(NamedTuple):
    """A configuration and what it does."""

    setting: Setting
    findings: list[Finding]

    @property
    def worst(self) -> Level | None:
        """The highest level; None where nothing fires."""
        return max((finding.level for finding in self.findings), default=None)


def check(text: str, *, library: str | None = None) -> Checked:
    """What a configuration does, given as text: YAML, JSON, TOML, a Python or shell script, a command line.

    Args:
      text: the configuration.
      library: a name of ``LIBRARIES``; None looks which library's options these are.

    Raises:
      ValueError: for what is no configuration of a library that is read here, with the reason.
    """
    return _checked(parsed(text), library)


def check_file(path: str | Path, overrides: Iterable[str] = (), *, library: str | None = None) -> Checked:
    """What a file does; ``overrides`` are ``name=value`` words laid over it. "-" is the standard input."""
    return _checked(read(path, overrides), library)


def _checked(source: Source, library: str | None) -> Checked:
    setting = settled(library_of(source, library), source)
    return Checked(setting, findings(setting))
