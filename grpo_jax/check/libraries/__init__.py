"""The libraries whose files are read, and which of them wrote a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from grpo_jax.check.libraries.areal import AREAL
from grpo_jax.check.libraries.nemo_rl import NEMO_RL
from grpo_jax.check.libraries.open_instruct import OPEN_INSTRUCT
from grpo_jax.check.libraries.openrlhf import OPENRLHF
from grpo_jax.check.libraries.prime_rl import PRIME_RL
from grpo_jax.check.libraries.trl import TRL
from grpo_jax.check.libraries.verl import VERL
from grpo_jax.check.reading import Source
from grpo_jax.check.setting import Library
from grpo_jax.part import nearest

LIBRARIES: Mapping[str, Library] = MappingProxyType(
    {library.preset: library for library in (TRL, VERL, OPENRLHF, AREAL, PRIME_RL, NEMO_RL, OPEN_INSTRUCT)}
)
"""Name -> how its files are read."""


def library_of(source: Source, name: str | None = None) -> Library:
    """The library that a file is for: the one named, else the one with most of its marks in the file.

    Raises:
      ValueError: for an unknown name, with the nearest right one; for a file without any mark.
    """
    scores = {key: _score(source, key, library.marks) for key, library in LIBRARIES.items()}
    best = max(scores, key=lambda key: scores[key])
    if name is not None:
        if name not in LIBRARIES:
            raise ValueError(f"unknown library {name!r}; {nearest(name, LIBRARIES)}")
        if not scores[name] and scores[best]:
            raise ValueError(
                f"the file has no option of {LIBRARIES[name].title}; it looks like {LIBRARIES[best].title}'s"
            )
        return LIBRARIES[name]
    if not scores[best]:
        raise ValueError(
            f"no library's options are in the file; name one with --library: {', '.join(LIBRARIES)}"
        )
    return LIBRARIES[best]


def _score(source: Source, key: str, patterns: tuple[str, ...]) -> int:
    names = [*source.values, *source.unread]
    return sum(any(re.fullmatch(p, name) for p in patterns) for name in names) + 100 * (key in source.hints)
