"""Options of a library: those a preset knows, those of the optimizer or the loop, those not modelled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from grpo_jax.part import nearest

O = TypeVar("O")


class NotModelled(ValueError):
    """A library's option, or a value of it, that no part computes."""


OPTIMIZER = frozenset(
    [
        "learning_rate",
        "lr",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "optim",
        "optimizer",
        "max_grad_norm",
        "grad_clip",
        "warmup_steps",
        "warmup_ratio",
        "lr_scheduler_type",
        "max_norm",
    ]
)
LOOP = frozenset(
    [
        "num_iterations",
        "num_generations",
        "generation_batch_size",
        "steps_per_generation",
        "gradient_accumulation_steps",
        "per_device_train_batch_size",
        "num_train_epochs",
        "max_steps",
        "seed",
        "sync_ref_model",
        "ref_model_mixup_alpha",
        "ref_model_sync_steps",
        "ppo_epochs",
        "ppo_mini_batch_size",
        "ppo_micro_batch_size",
        "ppo_micro_batch_size_per_gpu",
        "shuffle",
        "train_batch_size",
        "n",
        "rollout_n",
        "n_samples_per_prompt",
        "max_epochs",
        "dynamic_filtering_enable",
        "dynamic_filtering_range",
    ]
)


def read(library: str, kind: type[O], options: Mapping[str, Any], not_modelled: Mapping[str, Any]) -> O:
    """The library's options as a record; everything else raises and is named.

    Args:
      library: for the message.
      kind: dataclass of the options that are modelled, with the library's defaults.
      options: what the caller wrote.
      not_modelled: option -> the one value of it (the default) that changes nothing.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in options.items():
        if name in known:
            continue
        if name in not_modelled:
            if value != not_modelled[name]:
                only = not_modelled[name]
                raise NotModelled(f"{library}: {name}={value!r} is not modelled; only {only!r} is")
        elif name in OPTIMIZER:
            raise ValueError(f"{library}: {name} is no matter of the method; it belongs to the optimizer")
        elif name in LOOP:
            raise ValueError(f"{library}: {name} is no matter of the method; it belongs to the loop")
        else:
            raise NotModelled(f"{library}: {name} is not modelled; {nearest(name, known)}")
    return kind(**{name: value for name, value in options.items() if name in known})


def choose(library: str, option: str, value: Any, table: Mapping[Any, Any]) -> Any:
    """``table[value]``; ValueError with the nearest right value otherwise."""
    if value not in table:
        raise ValueError(f"{library}: {option}={value!r}; {nearest(str(value), [str(k) for k in table])}")
    return table[value]
