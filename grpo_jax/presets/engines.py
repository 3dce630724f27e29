"""Who samples, by a library's own options: how its trainer scores, and what its engine draws from."""

from __future__ import annotations

from typing import Any, NamedTuple

from grpo_jax.behavior import Behavior
from grpo_jax.decoding import TRANSFORMERS, VLLM, Decoding
from grpo_jax.types import Number


class Sampling(NamedTuple):
    """Where a library's sampling options belong in a ``Config``."""

    trainer: Decoding | None
    """For ``policy.decoding``: the trainer divides logits by the temperature whenever it scores."""
    behavior: Behavior | None
    """For ``behavior``; None where the engine draws from what the trainer scores."""


def _is(value: Any, off: float) -> bool:
    return isinstance(value, (int, float)) and value == off


def drawn(
    trainer: Number,
    *,
    engine: Number | None = None,
    top_k: Number | None = None,
    top_p: Number | None = None,
    min_p: Number | None = None,
    order: tuple[str, ...] = VLLM,
    joint: bool = False,
    records: str = "processed",
) -> Sampling:
    """The record of an engine and a trainer.

    Args:
      trainer: the temperature at which the trainer scores.
      engine: the temperature at which the engine draws; None is the trainer's.
      top_k: at most 0 keeps all, as engines have it.
      top_p: 1 keeps all.
      min_p: 0 keeps all.
      order: as ``Decoding`` has it.
      joint: as ``Decoding`` has it.
      records: as ``Behavior`` has it.
    """
    same = engine is None or engine is trainer or (isinstance(trainer, (int, float)) and _is(engine, trainer))
    hot = trainer if engine is None else engine
    filters = {
        "top_k": None if isinstance(top_k, (int, float)) and top_k <= 0 else top_k,
        "top_p": None if _is(top_p, 1) else top_p,
        "min_p": None if _is(min_p, 0) else min_p,
    }
    scores = None if _is(trainer, 1) else Decoding(temperature=trainer)
    unfiltered = all(value is None for value in filters.values())
    if unfiltered and same and (records == "processed" or _is(hot, 1)):
        return Sampling(scores, None)
    decoding = Decoding(temperature=hot, order=order, joint=joint, **filters)  # type: ignore[arg-type]
    return Sampling(scores, Behavior(decoding=decoding, records=records))


def sglang(trainer: Number, *, engine: Number | None = None, top_k: Number, top_p: Number) -> Sampling:
    """SGLang: both filters look at the tempered distribution (``filter_apply_order="joint"``).

    It reports log-probabilities after the temperature and before the filters.
    """
    found = drawn(
        trainer, engine=engine, top_k=top_k, top_p=top_p, order=TRANSFORMERS, joint=True, records="processed"
    )
    held = None if found.behavior is None else found.behavior.decoding
    if held is None or (held.top_k is None and held.top_p is None):
        return found
    return Sampling(found.trainer, Behavior(decoding=held, records="tempered"))
