"""The libraries by name, and the spelling ``library:loss,option=value`` of the command line."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from grpo_jax import methods
from grpo_jax.part import nearest
from grpo_jax.presets.areal import areal
from grpo_jax.presets.areal import sampling as areal_sampling
from grpo_jax.presets.engines import Sampling
from grpo_jax.presets.liger import liger
from grpo_jax.presets.liger import sampling as liger_sampling
from grpo_jax.presets.nemo_rl import nemo_rl
from grpo_jax.presets.nemo_rl import sampling as nemo_rl_sampling
from grpo_jax.presets.open_instruct import open_instruct
from grpo_jax.presets.open_instruct import sampling as open_instruct_sampling
from grpo_jax.presets.openrlhf import openrlhf
from grpo_jax.presets.openrlhf import sampling as openrlhf_sampling
from grpo_jax.presets.prime_rl import prime_rl
from grpo_jax.presets.prime_rl import sampling as prime_rl_sampling
from grpo_jax.presets.trl import sampling as trl_sampling
from grpo_jax.presets.trl import trl
from grpo_jax.presets.verl import sampling as verl_sampling
from grpo_jax.presets.verl import verl
from grpo_jax.surrogate import Method

PRESETS: Mapping[str, Callable[..., Method]] = MappingProxyType(
    {
        "trl": trl,
        "verl": verl,
        "openrlhf": openrlhf,
        "liger": liger,
        "prime_rl": prime_rl,
        "areal": areal,
        "nemo_rl": nemo_rl,
        "open_instruct": open_instruct,
    }
)
"""Library -> function of that library's own options."""

ENGINES: Mapping[str, Callable[..., Sampling]] = MappingProxyType(
    {
        "trl": trl_sampling,
        "verl": verl_sampling,
        "openrlhf": openrlhf_sampling,
        "liger": liger_sampling,
        "prime_rl": prime_rl_sampling,
        "areal": areal_sampling,
        "nemo_rl": nemo_rl_sampling,
        "open_instruct": open_instruct_sampling,
    }
)
"""Library -> who samples, by the same options."""

LOSS_OPTION = {
    "trl": "loss_type",
    "liger": "loss_type",
    "verl": "loss_mode",
    "openrlhf": "policy_loss_type",
    "prime_rl": "type",
    "nemo_rl": "adv_estimator",
    "open_instruct": "loss_fn",
}
"""The option that the word after the colon sets."""


def sampling(library: str, **options: Any) -> Sampling:
    """Who samples, by a library's own options; ``PRESETS[library]`` takes the same options for the method.

    ``trainer`` is for ``policy.decoding``: every one of these trainers divides logits by the temperature when
    it scores. ``behavior`` is for ``Config.behavior``; it is None where the engine draws from just that.

    Args:
      library: a name of ``PRESETS``.
      **options: the library's options, those of the method included.

    Raises:
      NotModelled: for a value that ``Decoding`` or ``Behavior`` cannot say.
      ValueError: for an unknown library or option, with the nearest right name, and for a temperature of 0
        (greedy decoding is its limit: give a small one).

    >>> found = sampling("trl", temperature=0.7, top_p=0.9, use_vllm=True)
    >>> found.trainer.temperature, found.behavior.decoding.top_p
    (0.7, 0.9)
    """
    if library not in ENGINES:
        raise ValueError(f"unknown library {library!r}; {nearest(library, ENGINES)}")
    return ENGINES[library](**options)


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
        if library not in LOSS_OPTION:
            raise ValueError(f"{spec!r}: {library} has no losses by name; write {library},option=value")
        options[LOSS_OPTION[library]] = loss
    method = PRESETS[library](**options)
    if sampling(library, **options) != Sampling(None, None):
        raise ValueError(
            f"{spec!r} says who samples, which is no matter of the method; "
            f"presets.sampling({library!r}, ...) gives policy.decoding and Config(behavior=...) for it"
        )
    return method


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return text
