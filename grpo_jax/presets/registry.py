"""The libraries by name, and the spelling ``library:loss,option=value`` of the command line."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from grpo_jax import methods
from grpo_jax.part import nearest
from grpo_jax.presets.liger import liger
from grpo_jax.presets.openrlhf import openrlhf
from grpo_jax.presets.trl import trl
from grpo_jax.presets.verl import verl
from grpo_jax.surrogate import Method

PRESETS: Mapping[str, Callable[..., Method]] = MappingProxyType(
    {"trl": trl, "verl": verl, "openrlhf": openrlhf, "liger": liger}
)
"""Library -> function of that library's own options."""

LOSS_OPTION = {"trl": "loss_type", "liger": "loss_type", "verl": "loss_mode", "openrlhf": "policy_loss_type"}
"""The option that the word after the colon sets."""


def parse(spec: str, **options: Any) -> Method:
    """The method that a name stands for: one of ``methods``, or ``library[:loss][,option=value ...]``.

    Args:
      spec: the name. Values are Python literals; what is none is taken as a string.
      **options: more options of the library.

    Raises:
      ValueError: for an unknown name, with the nearest right one.

    >>> parse("trl:dapo,epsilon_high=0.28").gain.high
    0.28
    >>> parse("gspo") is methods.get("gspo")
    True
    """
    name, *rest = spec.split(",")
    library, colon, loss = name.partition(":")
    if library not in PRESETS:
        if library in methods.METHODS and not colon and not rest and not options:
            return methods.get(library)
        raise ValueError(f"unknown method {spec!r}; {nearest(library, [*methods.METHODS, *PRESETS])}")
    for item in rest:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{item!r} in {spec!r} is not option=value")
        options[key.strip()] = _literal(value.strip())
    if loss:
        options[LOSS_OPTION[library]] = loss
    return PRESETS[library](**options)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
