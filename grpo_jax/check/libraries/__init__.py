"""The libraries whose files are read, and which of them wrote a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from grpo_jax.check.libraries.areal import AREAL
from grpo_jax.check.libraries.openrlhf import OPENRLHF
from grpo_jax.check.libraries.prime_rl import PRIME_RL
from grpo_jax.check.libraries.trl import TRL
from grpo_jax.check.libraries.verl import VERL
from grpo_jax.check.reading import Source
from grpo_jax.check.setting import Library
from grpo_jax.part import nearest

LIBRARIES: Mapping[str, Library] = MappingProxyType(
    {library.preset: library for library in (TRL, VERL, OPENRLHF, AREAL, PRIME_RL)}
)
"""Name -> how its files are read."""

ELSEWHERE: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "nemo_rl": (
            "NeMo-RL",
            (r"loss_fn\..*", r"grpo\.(num_prompts_per_step|num_generations_per_prompt|.*)"),
        ),
        "open_instruct": (
            "open-instruct",
            (r"num_(samples_per_prompt|unique_prompts)_rollout", r"advantage_normalization_type"),
        ),
    }
)
"""Libraries that are recognised, without a preset here."""


def library_of(source: Source, name: str | None = None) -> Library:
    """The library that a file is for: the one named, else the one with most of its marks in the file.

    Raises:
      ValueError: for an unknown name, with the nearest right one; for a file without any mark, or with those
        of a library that has no preset here.
    """
    marks = {key: library.marks for key, library in LIBRARIES.items()}
    marks |= {key: found[1] for key, found in ELSEWHERE.items()}
    scores = {key: _score(source, key, patterns) for key, patterns in marks.items()}
    best = max(scores, key=lambda key: scores[key])
    if name is not None:
        if name not in LIBRARIES:
            if name in ELSEWHERE:
                raise ValueError(f"{ELSEWHERE[name][0]} has no preset here; there are {', '.join(LIBRARIES)}")
            raise ValueError(f"unknown library {name!r}; {nearest(name, LIBRARIES)}")
        if not scores[name] and scores[best]:
            title = LIBRARIES[best].title if best in LIBRARIES else ELSEWHERE[best][0]
            raise ValueError(f"the file has no option of {LIBRARIES[name].title}; it looks like {title}'s")
        return LIBRARIES[name]
    if not scores[best]:
        raise ValueError(
            f"no library's options are in the file; name one with --library: {', '.join(LIBRARIES)}"
        )
    if best in ELSEWHERE:
        raise ValueError(
            f"this looks like {ELSEWHERE[best][0]}, which has no preset here: its loss is not modelled; "
            f"there are {', '.join(LIBRARIES)}"
        )
    return LIBRARIES[best]


def _score(source: Source, key: str, patterns: tuple[str, ...]) -> int:
    names = [*source.values, *source.unread]
    return sum(any(re.fullmatch(p, name) for p in patterns) for name in names) + 100 * (key in source.hints)
