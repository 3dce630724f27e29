"""Weights on disk, and one long run that goes on after an interruption as if there had been none (orbax).

A sweep keeps its own parts (``sweep(out=...)``); this is for a policy's weights, and for a single run of
hours. A folder holds arrays and JSON only.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from grpo_jax import train
from grpo_jax.bounds import whole
from grpo_jax.config import Config, TrainState
from grpo_jax.part import describe
from grpo_jax.types import Params, Policy

KEPT = 2
"""Checkpoints of a run that are kept: the last one, and the one before."""
ARCHITECTURE, MANIFEST = "architecture.json", "manifest.json"


def _architecture(policy: Policy) -> dict[str, Any]:
    """What weights belong to: everything about a policy but the weights it starts from."""
    return {name: value for name, value in describe(policy).items() if name not in ("start", "decoding")}


def _write(path: Path, content: Any) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(path)


def _require(path: Path, content: Mapping[str, Any], what: str) -> None:
    """ValueError with the first difference, where a file describes something else."""
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {what}: there is no {path.name} in it")
    try:
        held = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(held, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(held).__name__}, not a table")
    given = json.loads(json.dumps(content))
    for name in sorted(held | given):
        if held.get(name) != given.get(name):
            raise ValueError(
                f"{path.parent} holds {what} of another kind: {name} is {held.get(name)!r} there, and "
                f"{given.get(name)!r} here"
            )


def save(folder: str | os.PathLike[str], policy: Policy, params: Params) -> None:
    """Weights of a policy and what they belong to, for ``load``; an existing checkpoint is replaced.

    Parameters of any shapes.
    """
    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as writer:
        writer.save(path / "weights", params, force=True)
    _write(path / ARCHITECTURE, _architecture(policy))


def load(folder: str | os.PathLike[str], policy: Any) -> Any:
    """The policy, starting from saved weights; ValueError where they are of another architecture."""
    path = Path(folder).resolve()
    _require(path / ARCHITECTURE, _architecture(policy), "weights")
    like = jax.eval_shape(dataclasses.replace(policy, start=None).init, jax.random.key(0))
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore(path / "weights", like)
    return dataclasses.replace(policy, start=jax.tree.map(np.asarray, found))


def run(
    config: Config,
    folder: str | os.PathLike[str],
    *,
    iterations: int,
    save_every: int,
    seed: int = 0,
    root: int = 0,
    record_every: int = 1,
    record: Iterable[str] | None = None,
    measure: Mapping[str, Any] | None = None,
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """``train.run``, saved every so many iterations; called again, it goes on from what is saved.

    The result equals an uninterrupted run bit for bit: a run's draws depend on (root, seed, iteration) alone.

    Args:
      config: of one run.
      folder: where checkpoints go; one that holds another run is refused with the difference.
      iterations: in all, a multiple of ``save_every``; fewer than the folder holds are refused.
      save_every: iterations between checkpoints, a multiple of ``record_every``.
      seed: of the run.
      root: the seed root.
      record_every: as in ``train.run``.
      record: as in ``train.run``.
      measure: as in ``train.run``; only the names are compared with those of the run in the folder.

    Returns:
      The state, and name -> [recorded, ...] of the whole run.
    """
    whole("save_every", save_every)
    if iterations % save_every or save_every % record_every:
        raise ValueError(
            f"iterations ({iterations}) must be a multiple of save_every ({save_every}), and that of "
            f"record_every ({record_every})"
        )
    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    about = {"configuration": describe(config), "seed": seed, "root": root, "save_every": save_every,
             "record_every": record_every, "record": None if record is None else sorted(record),
             "measure": sorted(measure or {})}  # fmt: skip
    if (path / MANIFEST).exists():
        _require(path / MANIFEST, about, "a run")
    else:
        _write(path / MANIFEST, about)
    state = train.init(config, seed, root=root)
    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
    with ocp.CheckpointManager(path / "checkpoints", options=options) as manager:
        done, parts = manager.latest_step() or 0, []
        if done > iterations:
            raise ValueError(
                f"{path} holds a run of {done} iterations, and {iterations} are asked for; ask for {done} or "
                f"more, or take another folder"
            )
        if done:
            state = manager.restore(done, args=ocp.args.StandardRestore(jax.eval_shape(lambda: state)))
            parts = [_records(path, at) for at in range(save_every, done + 1, save_every)]
        while done < iterations:
            state, info = train.run(
                config,
                state,
                iterations=save_every,
                record_every=record_every,
                record=record,
                measure=measure,
            )
            done += save_every
            parts.append({name: np.asarray(value) for name, value in info.items()})
            _save_records(path, done, parts[-1])
            manager.save(done, args=ocp.args.StandardSave(state))
    return state, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _save_records(path: Path, done: int, records: Mapping[str, np.ndarray]) -> None:
    """Before the state that follows them, so that a state on disk has all its records."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(path / "records" / str(done), dict(records), force=True)


def _records(path: Path, done: int) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as reader:
        return {
            name: np.asarray(value) for name, value in reader.restore(path / "records" / str(done)).items()
        }
