"""Whether a policy and a task speak of the same prompts and answers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from grpo_jax.sequences import Sequences
from grpo_jax.types import (
    FiniteActions,
    HasContexts,
    HasTable,
    OneToken,
    OverSequences,
    Policy,
    Task,
)


@runtime_checkable
class AsksInTokens(Protocol):
    """A task, or a policy, whose prompts are token sequences [P, Q], Q = ``prompt_length``.

    A policy that has contexts besides takes ids instead.
    """

    @property
    def prompt_length(self) -> int:
        """Q."""


def check_fit(policy: Policy, task: Task) -> None:
    """Raise ValueError, with what differs, unless the policy answers what the task asks."""
    contexts = _task_contexts(task)
    if contexts is not None and policy.contexts not in (None, contexts):
        raise ValueError(f"the policy has {policy.contexts} contexts, the task {contexts}")
    _check_table(policy, task)
    _check_prompts(policy, task)


def _task_contexts(task: Task) -> int | None:
    if isinstance(task, HasContexts):
        return task.contexts
    return int(jnp.shape(task.table)[0]) if isinstance(task, HasTable) else None


def _check_table(policy: Policy, task: Task) -> None:
    """A table has an entry for each of the policy's answers."""
    if isinstance(task, OneToken) and policy.horizon != 1:
        raise ValueError(
            f"{type(task).__name__} rewards single actions; {type(policy).__name__} gives sequences of up to "
            f"{policy.horizon} tokens, of which it would read the first; use SequenceTable or SequenceReward"
        )
    if isinstance(task, OneToken) and isinstance(policy, OverSequences):
        answers = jnp.shape(task.table)[1]
        if answers != policy.space.vocab:
            raise ValueError(
                f"the reward table has {answers} answers, the policy {policy.space.vocab} tokens"
            )
    if isinstance(task, HasTable) and isinstance(policy, FiniteActions):
        answers = jnp.shape(task.table)[1]
        if answers != policy.actions:
            raise ValueError(f"the reward table has {answers} answers, the policy {policy.actions} actions")
    if isinstance(task, OverSequences) and isinstance(policy, OverSequences):
        _check_space(policy.space, task.space)


def _check_space(own: Sequences, asked: Sequences) -> None:
    """The policy's answers are the task's."""
    if own.eos is None and asked.eos is not None:
        raise ValueError(
            f"the policy never ends an answer: its space has no EOS, and the task's answers end with token "
            f"{asked.eos}; build the policy on task.space"
        )
    names = ("vocab", "horizon", "eos", "forbidden")
    pairs = ((name, getattr(own, name), getattr(asked, name)) for name in names)
    differ = [f"{name} {mine!r} and {other!r}" for name, mine, other in pairs if mine != other]
    if differ:
        raise ValueError(
            f"policy and task are over different spaces of sequences ({'; '.join(differ)}); build the policy "
            "on task.space"
        )


def _check_prompts(policy: Policy, task: Task) -> None:
    """The task asks as the policy reads: by id, or in tokens, at most as many as it has room for."""
    in_tokens = isinstance(policy, AsksInTokens) and policy.contexts is None
    if isinstance(policy, AsksInTokens) and in_tokens and _task_contexts(task) is not None:
        raise ValueError(
            f"{type(task).__name__} asks by ids 0..{_task_contexts(task)} - 1, and the policy reads tokens; "
            "give the policy contexts"
        )
    if not isinstance(task, AsksInTokens):
        return
    name, asked = type(policy).__name__, task.prompt_length
    if policy.contexts is not None or policy.trailing:
        raise ValueError(
            f"{type(task).__name__} asks in tokens, {asked} at most, and {name} knows prompts by their ids; "
            "use a TransformerPolicy without contexts"
        )
    if isinstance(policy, AsksInTokens) and policy.prompt_length != asked:
        raise ValueError(
            f"prompts have {asked} tokens, and {name} reads {policy.prompt_length}; build the policy with "
            "prompt_length=task.prompt_length"
        )
