"""Options of a library: those a preset knows, those of the optimizer or the loop, those not modelled."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import numpy as np

from grpo_jax.bounds import may_be_number
from grpo_jax.part import nearest
from grpo_jax.surrogate import Method

O = TypeVar("O")
F = TypeVar("F", bound=Callable[..., Any])


class NotModelled(ValueError):
    """A library's option, or a value of it, that no part computes."""


ADAM = "the optimizer: Config(optimizer=AdamW({}))"
LOOP = "the loop: Config(loop=Loop({}))"
BATCH = "the loop: Config(loop=Loop(prompts=..., minibatches=...)), prompts drawn a batch and steps over it"
CLIP = "the optimizer: Config(optimizer=ClippedNorm(inner=AdamW(), max_norm={value}))"
RATE = "the optimizer: Config(optimizer=AdamW(learning_rate={}))"
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("learning_rate", "lr"), ADAM.format("learning_rate={value}"))
    | dict.fromkeys(("max_grad_norm", "grad_clip", "max_norm"), CLIP)
    | dict.fromkeys(
        ("optim", "optimizer"), "the optimizer: Config(optimizer=...), one of grpo_jax.optimizers"
    )
    | dict.fromkeys(("warmup_steps", "warmup_ratio"), RATE.format("Warmup(peak=..., steps=...)"))
    | dict.fromkeys(("num_iterations", "ppo_epochs", "max_epochs"), LOOP.format("inner_steps={value}"))
    | dict.fromkeys(
        ("num_generations", "n", "rollout_n", "n_samples_per_prompt"), LOOP.format("group_size={value}")
    )
    | dict.fromkeys(
        (
            "generation_batch_size",
            "steps_per_generation",
            "gradient_accumulation_steps",
            "per_device_train_batch_size",
            "train_batch_size",
            "ppo_mini_batch_size",
            "ppo_micro_batch_size",
            "ppo_micro_batch_size_per_gpu",
        ),
        BATCH,
    )
    | dict.fromkeys(("num_train_epochs", "max_steps"), "the loop: sweep(iterations=...)")
    | dict.fromkeys(
        ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
        "the loop, where the reference stays as it is: Config(reference=...)",
    )
    | dict.fromkeys(
        ("dynamic_filtering_enable", "dynamic_filtering_range"),
        "the loop: Loop(prompts=..., refill=Refill(other=True)) draws other prompts in the place of tied "
        "groups; the reduction Informative(inner=...) leaves them out",
    )
    | {
        "weight_decay": ADAM.format("weight_decay={value}"),
        "adam_beta1": ADAM.format("b1={value}"),
        "adam_beta2": ADAM.format("b2={value}"),
        "adam_epsilon": ADAM.format("eps={value}"),
        "lr_scheduler_type": RATE.format("Cosine(...)") + ", or Warmup(...)",
        "seed": "the loop: sweep(seeds=..., root={value})",
        "shuffle": "the loop: Loop(minibatches=...) always shuffles",
    }
)
"""Option of a trainer that is no matter of the method -> what it is here."""
SAMPLING = frozenset(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"))
SAMPLER = "; it belongs to the sampler, and this library's is not modelled with it (presets.sampling)"


def _numbers(value: Any) -> bool:
    """Whether it is a list of numbers, or an array; text is none, though it is a sequence."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return value.ndim > 0
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return is_list and all(may_be_number(item, 0) for item in value)


KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        "bool": (lambda value: isinstance(value, (bool, np.bool_)), "True or False"),
        "int": (lambda value: not isinstance(value, bool), "a number, and no truth value"),
        "float": (lambda value: may_be_number(value, 0), "a number"),
        "Mapping[str, Any]": (
            lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value),
            "options by name, as {'name': value}",
        ),
        "Sequence[float]": (_numbers, "a list of numbers, as [1.0, 2.0]"),
        "tuple[float, float]": (lambda value: _numbers(value) and len(value) == 2, "two numbers, as (0, 1)"),
    }
)
"""Annotation -> (whether a value is of that kind, what is), for those that no part checks."""


def signature(kind: type) -> inspect.Signature:
    """What a function of these options takes, so that editors complete them and ``help`` lists them."""
    given = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in dataclasses.fields(kind)
    ]
    more = inspect.Parameter("others", inspect.Parameter.VAR_KEYWORD, annotation="Any")
    return inspect.Signature([*given, more], return_annotation="Method")


def takes(kind: type) -> Callable[[F], F]:
    """Give a preset the signature of its options."""

    def named(preset: F) -> F:
        preset.__signature__ = signature(kind)  # type: ignore[attr-defined]
        return preset

    return named


def read(library: str, kind: type[O], options: Mapping[str, Any], not_modelled: Mapping[str, Any]) -> O:
    """The library's options as a record; everything else raises and is named.

    Args:
      library: for the message.
      kind: dataclass of the options that are modelled, with the library's defaults.
      options: what the caller wrote.
      not_modelled: option -> the one value of it (the default) that changes nothing.

    Raises:
      NotModelled: for an option or a value of it that no part computes, with the nearest right name.
      ValueError: for an option of the optimizer or the loop, and for a value of another kind.
    """
    known = {field.name: str(field.type) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in options.items():
        if name in known:
            _check_kind(f"{library}: {name}", known[name], value)
            continue
        if name in not_modelled:
            if value != not_modelled[name]:
                only, hint = not_modelled[name], SAMPLER if name in SAMPLING else ""
                raise NotModelled(f"{library}: {name}={value!r} is not modelled; only {only!r} is{hint}")
        elif name in ELSEWHERE:
            here = ELSEWHERE[name].replace("{value}", repr(value))
            raise ValueError(f"{library}: {name} is no matter of the method; it belongs to {here}")
        elif name in SAMPLING:
            raise NotModelled(f"{library}: {name}={value!r} is not modelled{SAMPLER}")
        else:
            near = nearest(name, [*known, *not_modelled, *ELSEWHERE, *SAMPLING])
            hint = near if near.startswith("did you mean") else nearest(name, known)
            raise NotModelled(f"{library}: {name} is not modelled; {hint}")
    return kind(**{name: value for name, value in options.items() if name in known})


def _check_kind(name: str, annotation: str, value: Any) -> None:
    kind = annotation.removesuffix(" | None")
    if kind not in KINDS or (value is None and kind != annotation):
        return
    fits, wanted = KINDS[kind]
    if not fits(value):
        raise ValueError(f"{name}={value!r}; it must be {wanted}")


class _Watched:
    """A record that remembers which of its fields were read; ``names`` are other names for fields."""

    def __init__(self, record: Any, names: Mapping[str, str]) -> None:
        self._record, self._names = record, names
        self._read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        field = self._names.get(name, name)
        self._read.add(field)
        return getattr(self._record, field)


def made(
    library: str,
    o: O,
    build: Callable[[O], Method],
    *,
    elsewhere: frozenset[str],
    names: Mapping[str, str] = MappingProxyType({}),
) -> Method:
    """``build(o)``; NotModelled for an option that is given and that ``build`` never reads.

    What the library itself would ignore in silence is said here, so that no option is believed to act.

    Args:
      library: for the message.
      o: the options; one that has its default counts as not given.
      build: the method of these options, which reads an option only where it acts.
      elsewhere: options that someone else reads: who samples.
      names: name that ``build`` reads -> the library's own name of it.
    """
    watched = _Watched(o, names)
    method = build(watched)  # type: ignore[arg-type]
    for field in dataclasses.fields(o):  # type: ignore[arg-type]
        value = getattr(o, field.name)
        default = not isinstance(value, (jax.Array, np.ndarray)) and value == field.default
        if not default and field.name not in watched._read and field.name not in elsewhere:
            raise NotModelled(
                f"{library}: {field.name}={value!r} changes nothing beside the other options; leave it out"
            )
    return method


def choose(library: str, option: str, value: Any, table: Mapping[Any, Any]) -> Any:
    """``table[value]``; ValueError with the nearest right value otherwise."""
    if value not in table:
        raise ValueError(f"{library}: {option}={value!r}; {nearest(str(value), [str(k) for k in table])}")
    return table[value]
