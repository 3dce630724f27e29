"""A checked configuration as text, and as JSON for a machine."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from grpo_jax.check.hazards import Finding, Level
from grpo_jax.check.setting import Setting
from grpo_jax.methods import describe as expression
from grpo_jax.methods import effective
from grpo_jax.surrogate import Method

WIDTH, MOST_NAMES = 110, 12
"""Characters of a line; names of options that are not read, before the rest are counted."""


def text(setting: Setting, found: Iterable[Finding], *, brief: bool = False, width: int = WIDTH) -> str:
    """What it is, what it does, what is left out.

    Args:
      setting: the configuration.
      found: its findings, in the order to be told.
      brief: without the method's parts and what is left out.
      width: characters of a line of prose, at most ``WIDTH`` and at least 40; expressions are not broken.
    """
    width = max(40, min(width, WIDTH))
    lines = [f"{setting.title}: {_shape(setting)}"]
    if not brief:
        lines += ["", "the method", *_slots(setting.method), *_circumstances(setting)]
    found = list(found)
    for level in sorted(Level, reverse=True):
        told = [finding for finding in found if finding.level == level]
        if told:
            lines += ["", f"{level.word} ({len(told)})"]
            lines += [line for finding in told for line in _told(finding, width)]
    if not found:
        lines += ["", "no hazard"]
    if not brief:
        lines += _left(setting, width)
    return "\n".join(lines)


def as_json(setting: Setting, found: Iterable[Finding]) -> str:
    """The same for a machine; every size is the number in the text."""
    at = setting.at
    held = {
        "library": setting.library,
        "title": setting.title,
        "method": {f.name: effective(setting.method, f.name, defaults=True) for f in _fields()},
        "sampler": _sampler(setting),
        "optimizer": expression(at.optimizer, defaults=True),
        "loop": {
            "group_size": at.group_size,
            "prompts": at.prompts,
            "inner_steps": at.passes,
            "minibatches": at.minibatches,
            "steps_on_a_batch": at.steps,
            "tokens": at.tokens,
            "lag": at.lag,
            "refill": None if at.refill is None else expression(at.refill),
        },
        "not_modelled": dict(setting.not_modelled),
        "idle": dict(setting.idle),
        "ignored": list(setting.ignored),
        "assumed": list(setting.assumed),
        "findings": [
            finding._asdict()
            | {"level": finding.level.word, "size": finding.size if math.isfinite(finding.size) else "inf"}
            for finding in found
        ],
    }
    return json.dumps(held, indent=2, ensure_ascii=False, allow_nan=False, default=str)


def _fields() -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(Method)


def _shape(setting: Setting) -> str:
    at = setting.at
    steps = "one optimizer step" if at.steps == 1 else f"{at.steps} optimizer steps"
    batch = "" if at.prompts is None else f", {at.prompts} prompt{'s' * (at.prompts > 1)} a batch"
    return f"groups of {at.group_size}{batch}, {steps} on each"


def _slots(method: Method) -> list[str]:
    return [f"  {f.name:<13}{effective(method, f.name, defaults=True)}" for f in _fields()]


def _sampler(setting: Setting) -> str:
    trainer, behavior = setting.sampling
    said = [] if trainer is None else [f"policy.decoding={expression(trainer)}"]
    said += [] if behavior is None else [f"behavior={expression(behavior)}"]
    return ", ".join(said) or "the old policy"


def _circumstances(setting: Setting) -> list[str]:
    at = setting.at
    loop = f"Loop(group_size={at.group_size}, prompts={at.prompts}, inner_steps={at.passes}"
    loop += f", minibatches={at.minibatches}" if at.minibatches > 1 else ""
    loop += f", refill={expression(at.refill)}" if at.refill is not None else ""
    old = "" if at.lag is None else f", up to {at.lag} batch{'es' if at.lag > 1 else ''} old"
    return [
        f"  {'sampler':<13}{_sampler(setting)}{old}",
        f"  {'optimizer':<13}{expression(at.optimizer, defaults=True)}",
        f"  {'loop':<13}{loop})" + ("" if at.tokens is None else f", answers of up to {at.tokens} tokens"),
    ]


def _told(finding: Finding, width: int) -> list[str]:
    said = f"{finding.what}: {finding.says} ({finding.claim})"
    return textwrap.wrap(said, width, initial_indent="  ", subsequent_indent="    ")


def _wrapped(said: str, width: int) -> list[str]:
    return textwrap.wrap(said, width, subsequent_indent="    ")


def _left(setting: Setting, width: int) -> list[str]:
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("not modelled, so that the method shown lacks it", setting.not_modelled),
        ("changes nothing beside the other options", setting.idle),
    ]
    lines = []
    for title, held in groups:
        if held:
            lines += ["", title]
            for name, why in held.items():
                lines += textwrap.wrap(f"{name} {why}", width, initial_indent="  ", subsequent_indent="    ")
    if setting.assumed:
        lines += ["", *_wrapped(f"taken where the file is silent: {'; '.join(setting.assumed)}", width)]
    if setting.ignored:
        more = len(setting.ignored) - MOST_NAMES
        rest = f", and {more} more (--json lists them)" if more > 0 else ""
        lines += ["", *_wrapped(f"not read: {', '.join(setting.ignored[:MOST_NAMES])}{rest}", width)]
    return lines
