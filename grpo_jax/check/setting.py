"""What a configuration amounts to: a method, who samples, an optimizer, a loop, and what is left out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from grpo_jax.bounds import whole
from grpo_jax.check.reading import Source, shown
from grpo_jax.decoding import Decoding
from grpo_jax.optimizers import AdamW, ClippedNorm, Optimizer
from grpo_jax.part import nearest
from grpo_jax.presets import PRESETS, NotModelled, Sampling, sampling
from grpo_jax.refill import Refill
from grpo_jax.surrogate import Method

KINDS = ("loss_type", "loss_mode", "adv_estimator", "estimator", "algorithm", "type", "policy_loss_type")
"""Options that name the method itself: without them another one would be shown."""
LISTS = ("reward_weights", "gdpo_reward_weights")
"""Options that are lists."""
MOST_ANSWERS = 100_000
ALIKE = 0.84
"""How alike an unknown name and a known one are spelt for the unknown one to be a mistake."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What is no matter of the method: the loop's shape, the optimizer, the budget, the sampler's age."""

    group_size: int
    prompts: int | None
    """Prompts of a batch; None where the file does not say."""
    passes: int = 1
    """Passes over a batch."""
    minibatches: int = 1
    """Optimizer steps in a pass."""
    tokens: int | None = None
    """Tokens that an answer may have; None where the file does not say."""
    optimizer: Optimizer
    lag: int | None = None
    """How many batches old the sampler's weights may be; None where every batch is drawn with new ones."""
    refill: Refill | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps on one batch of answers."""
        return self.passes * self.minibatches


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A configuration, read."""

    library: str
    title: str
    method: Method
    sampling: Sampling
    at: Circumstances
    options: Mapping[str, Any]
    """What the library's preset was given."""
    written: frozenset[str]
    """Names, the library's own, that the file sets."""
    not_modelled: Mapping[str, str]
    """Name -> why what it does is not in the method shown."""
    idle: Mapping[str, str]
    """Name -> why it changes nothing beside the other options."""
    ignored: tuple[str, ...]
    """Names that are no matter of the dynamics."""
    assumed: tuple[str, ...]
    """What the file leaves open, and what was taken for it."""

    @property
    def decoding(self) -> Decoding:
        """What the engine draws with."""
        behavior, trainer = self.sampling.behavior, self.sampling.trainer
        held = trainer if behavior is None else behavior.decoding
        return Decoding() if held is None else held


class Given:
    """A file's values, by any of the names that an option has had; remembers what was asked for."""

    def __init__(self, source: Source) -> None:
        self.values, self.unread = source.values, source.unread
        self.asked: set[str] = set()
        self.assumed: list[str] = []
        self.left: dict[str, str] = {}
        """Name -> why what it does is not modelled."""

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these names that is set, else the default."""
        self.asked.update(names)
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
            if name in self.unread:
                self.assumed.append(f"{name} ({self.unread[name]}): {shown(default)}")
        return default

    def null(self, name: str) -> bool:
        """Whether the file sets this name to null, which for some options is a value and no silence."""
        self.asked.add(name)
        return name in self.values and self.values[name] is None

    def count(self, *names: str, default: int, low: int = 1) -> int:
        """A whole number; ValueError for anything else, named as the file names it."""
        found = self.get(*names, default=default)
        name = next((n for n in names if n in self.values), names[0])
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        try:
            return whole(name, found, low=low)
        except TypeError as error:
            raise ValueError(str(error)) from None

    def number(self, *names: str, default: float) -> float:
        """A number; ValueError for anything else, named as the file names it."""
        found = self.get(*names, default=default)
        name = next((n for n in names if n in self.values), names[0])
        if isinstance(found, bool) or not isinstance(found, (int, float)) or found != found:
            raise ValueError(f"{name} is {shown(found)}; it must be a number")
        return float(found)

    def flag(self, *names: str, default: bool = False) -> bool:
        """A switch; ValueError for anything else, named as the file names it."""
        found = self.get(*names, default=default)
        name = next((n for n in names if n in self.values), names[0])
        if not isinstance(found, bool):
            raise ValueError(f"{name} is {shown(found)}; it must be true or false")
        return found

    def assume(self, *names: str, taken: int, what: str) -> int:
        """A whole number, or ``taken`` where the file does not say, which is then told."""
        if not any(self.values.get(name) is not None for name in names):
            self.assumed.append(f"{what}, which the file does not say: {taken}")
        return self.count(*names, default=taken)


class Library(NamedTuple):
    """How a library's files are read."""

    title: str
    preset: str
    """Name in ``presets.PRESETS``."""
    marks: tuple[str, ...]
    """Patterns of names that no other library has."""
    options: Callable[[Given], dict[str, Any]]
    """The preset's options."""
    circumstances: Callable[[Given], Circumstances]
    acts: Mapping[str, tuple[Any, str]]
    """Name -> (the value at which it changes nothing, what it does otherwise), for what has no part here."""
    irrelevant: tuple[str, ...]
    """Patterns of names that are no matter of the dynamics, however alike they are to others."""


def settled(library: Library, source: Source) -> Setting:
    """The setting that a file describes.

    Raises:
      ValueError: for a value that is none, an unknown name that is nearly a known one, a library whose
        options the file does not have, and a method that has no parts here at all.
    """
    given = Given(source)
    options = library.options(given)
    at = library.circumstances(given)
    if at.group_size > MOST_ANSWERS:
        raise ValueError(f"groups of {at.group_size}; sizes are computed for up to {MOST_ANSWERS:,} answers")
    _check_lists(library.preset, options)
    method, drawn, left, idle = built(library.preset, options)
    left |= given.left | {
        name: f"= {shown(source.values[name])}: {does}"
        for name, (off, does) in library.acts.items()
        if name in source.values and source.values[name] not in (off, None)
    }
    given.asked.update(library.acts)
    used = given.asked & set(source.values)
    if not used:
        reasons = "".join(f"; {name}: {why}" for name, why in source.unread.items())
        raise ValueError(
            f"none of the file's {len(source.values)} options is one of {library.title}'s that is read here"
            f"{reasons}"
        )
    ignored = [name for name in source.values if name not in given.asked]
    misspelt(ignored, given.asked, library)
    unread = {n: why for n, why in source.unread.items() if n not in given.asked and "." not in n}
    return Setting(
        library=library.preset,
        title=library.title,
        method=method,
        sampling=drawn,
        at=at,
        options=options,
        written=frozenset(name for name in used if source.values[name] is not None),
        not_modelled=left,
        idle=idle,
        ignored=(*ignored, *unread),
        assumed=tuple(given.assumed),
    )


def _check_lists(preset: str, options: Mapping[str, Any]) -> None:
    """ValueError for a list where one value is due (the presets take one for each run), and for its words."""
    for name, value in options.items():
        if isinstance(value, list) and name not in LISTS:
            raise ValueError(f"{preset}: {name} is {shown(value)}; it must be one value")
        if isinstance(value, list) and not all(type(item) in (int, float) for item in value):
            raise ValueError(f"{preset}: {name} is {shown(value)}; it must hold numbers")


def misspelt(names: Iterable[str], known: Iterable[str], library: Library) -> None:
    """ValueError for an unknown name that is nearly a known one, which is a slip of the pen."""
    for name in names:
        if any(re.fullmatch(pattern, name) for pattern in library.irrelevant):
            continue
        group, _, own = name.rpartition(".")
        beside = {k.rpartition(".")[2]: k for k in sorted(known) if k.rpartition(".")[0] == group}
        close = [beside[k] for k in difflib.get_close_matches(own, beside, n=3, cutoff=ALIKE)]
        if close:
            raise ValueError(f"{library.title} has no option {name}; {nearest(name, close)}")


def built(preset: str, options: Mapping[str, Any]) -> tuple[Method, Sampling, dict[str, str], dict[str, str]]:
    """(method, who samples, option -> why it is not modelled, option -> why it is idle).

    An option that no part computes is left out, one at a time, until the rest is a method.
    """
    left: dict[str, str] = {}
    idle: dict[str, str] = {}
    rest = dict(options)
    while True:
        try:
            return PRESETS[preset](**rest), sampling(preset, **rest), left, idle
        except NotModelled as error:
            name = _culprit(preset, rest, error)
            if name in KINDS:
                raise ValueError(f"{error}, so that there is no method to show") from None
            why = str(error).removeprefix(f"{preset}: ")
            (idle if "changes nothing" in why else left)[name] = why
            del rest[name]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            name = _culprit(preset, rest, error)
            if not isinstance(error, ValueError):
                error = ValueError("it has no meaning there")
            told = f"{preset}: {name} is {shown(rest[name])}; {error}"
            raise ValueError(str(error) if str(error).startswith(preset) else told) from None


def _culprit(preset: str, options: Mapping[str, Any], error: Exception) -> str:
    """The option without which this error is gone: one that it names or quotes, if any."""
    quoted = [name for name, value in options.items() if repr(value) in str(error)]
    named = [name for name in options if re.search(rf"\b{re.escape(name)}\b", str(error))]
    for name in dict.fromkeys((*named, *quoted, *options)):
        rest = {n: v for n, v in options.items() if n != name}
        try:
            PRESETS[preset](**rest), sampling(preset, **rest)
        except Exception as other:
            if type(other) is not type(error) or str(other) == str(error):
                continue
        return name
    raise ValueError(f"{error}; without it there is no method to show") from None


def adamw(
    *,
    rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    decay: float = 0.0,
    norm: float | None = 1.0,
) -> Optimizer:
    """AdamW of these numbers, behind a clip of the gradient's norm where there is one."""
    inner = AdamW(learning_rate=rate, b1=b1, b2=b2, eps=eps, weight_decay=decay)
    return inner if norm is None or norm <= 0 else ClippedNorm(inner=inner, max_norm=norm)


def divided(given: Given, total: int, part: int, names: tuple[str, str]) -> int:
    """``total/part``, at least 1; said where it is no whole number."""
    if total % part and total > part:
        given.assumed.append(f"{names[0]} is no multiple of {names[1]}; {total // part} steps a pass")
    return max(total // part, 1)
