"""Strings become objects here, and only here: ``name=value`` words of the command line -> a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from grpo_jax import presets
from grpo_jax.bounds import whole
from grpo_jax.collectors import Counts, Sampled
from grpo_jax.config import Config, Loop
from grpo_jax.exact import Exact
from grpo_jax.optimizers import OPTIMIZERS
from grpo_jax.part import leaf_paths, nearest, put
from grpo_jax.policies import ActionPolicy, TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.sweeps.axes import ALIASES, resolve
from grpo_jax.tasks import Bernoulli, Gaussian, Questions, SequenceTable

EXPECTATIONS: dict[str, Any] = {"sampled": Sampled(), "counts": Counts(), "exact": Exact()}


MOST = 10**7
"""Rewards of the table that the command line makes, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What is trained on what."""

    method: str = "grpo"
    """Name of a method (`python -m grpo_jax methods` lists them), or a library's: trl:dapo, verl:vanilla."""
    optimizer: str = "adamw"
    """sgd, heavy_ball, rmsprop, adam, adamw or lion."""
    contexts: int = 4
    """Number of prompts."""
    actions: int = 8
    """Answers to each prompt (tokens of the vocabulary, EOS included, with --horizon above 1)."""
    horizon: int = 1
    """Greatest length of an output; above 1 outputs are sequences that end at an EOS token."""
    rewards: tuple[float, ...] = ()
    """One reward per answer, the same for every prompt; default standard normal, drawn with --task-seed."""
    noise: Literal["none", "bernoulli", "gaussian"] = "none"
    """Law of the reward around its table; Bernoulli takes the table as success probabilities."""
    start: tuple[float, ...] = ()
    """Probabilities of the answers where training starts (and the reference); uniform by default."""
    task_seed: int = 0
    """Seed of the default reward table."""
    group_size: int = 8
    """G."""
    inner_steps: int = 1
    """Optimizer passes over one batch (mu)."""
    minibatches: int = 1
    """Optimizer steps in a pass."""
    refresh_every: int = 1
    """Iterations between refreshes of the old policy."""
    set: tuple[str, ...] = ()
    """Numbers to change, as path=value: learning_rate=0.01 kl_coef=0.04 clip_high=0.28."""


def build(setup: Setup) -> Config:
    """The configuration that a ``Setup`` means; ValueError names what is wrong and the nearest right name."""
    loop = Loop(
        group_size=setup.group_size,
        inner_steps=setup.inner_steps,
        minibatches=setup.minibatches,
        refresh_every=setup.refresh_every,
    )
    policy, task = _problem(setup)
    config = Config(
        policy=policy,
        task=task,
        method=presets.parse(setup.method),
        optimizer=_optimizer(setup.optimizer),
        loop=loop,
    )
    written: dict[str, str] = {}
    for name, values in assignments(setup.set, "--set").items():
        if len(values) != 1:
            raise ValueError(f"--set gives one value to {name}, not {len(values)}; use sweep for several")
        path = resolve(config, name, static=False)
        if path in written:
            raise ValueError(f"--set gives {path} twice, as {written[path]} and as {name}")
        written[path] = name
        config = put(config, path, number(name, values[0]))
    return config


def _problem(setup: Setup) -> tuple[Any, Any]:
    for flag in ("contexts", "actions", "horizon"):
        whole(f"--{flag}", getattr(setup, flag))
    whole("--task-seed", setup.task_seed, low=0)
    noise = {"none": None, "bernoulli": Bernoulli(), "gaussian": Gaussian()}[setup.noise]
    space = None
    outputs = setup.actions
    if setup.horizon > 1:
        space = Sequences(
            vocab=setup.actions,
            horizon=setup.horizon,
            eos=setup.actions - 1,
            forbidden=((0, setup.actions - 1),),
        )
        outputs = len(space.support[0])
    if setup.contexts * outputs > MOST:
        raise ValueError(
            f"--contexts {setup.contexts} times {outputs} answers are more than {MOST:,} rewards; take fewer"
        )
    table = _row("--rewards", setup.rewards, outputs)
    if table is None:
        draw = np.random.default_rng(setup.task_seed)
        shape = (setup.contexts, outputs)
        table = draw.uniform(size=shape) if setup.noise == "bernoulli" else draw.normal(size=shape)
    table = np.broadcast_to(table, (setup.contexts, outputs)).copy()
    if space is not None:
        if setup.start:
            raise ValueError("--start gives probabilities of single answers; sequences start uniform")
        return TreePolicy.uniform(space, contexts=setup.contexts), SequenceTable(
            space=space, table=table, noise=noise
        )
    start = _row("--start", setup.start, outputs)
    rows = (
        np.ones((setup.contexts, outputs))
        if start is None
        else np.broadcast_to(start, (setup.contexts, outputs))
    )
    return ActionPolicy.from_probabilities(rows), Questions(table=table, noise=noise)


def _row(flag: str, values: tuple[float, ...], size: int) -> np.ndarray | None:
    if values and len(values) != size:
        raise ValueError(f"{flag} gives {len(values)} numbers; there are {size} answers")
    return np.array(values) if values else None


def assignments(words: Iterable[str], flag: str) -> dict[str, list[str]]:
    """``a=1,2 b=3`` -> {"a": ["1", "2"], "b": ["3"]}; ValueError for what ``flag`` gives twice."""
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not name or not values:
            raise ValueError(f"{word!r} is not of the form name=value,value")
        if name in found:
            raise ValueError(f"{flag} gives {name} twice; write {name}=value,value once")
        found[name] = values.split(",")
    return found


def number(name: str, text: str) -> float:
    """A number, or ValueError naming the path."""
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{name} takes numbers, not {text!r}") from error


def axes(words: Iterable[str]) -> dict[str, list[float]]:
    """``learning_rate=1e-3,1e-2`` -> the sweep's traced axes."""
    return {name: [number(name, v) for v in values] for name, values in assignments(words, "--sweep").items()}


def variants(words: Iterable[str], config: Config) -> dict[str, Any]:
    """``method=grpo,dapo group_size=4,8`` -> the sweep's structural axes; numbers stand for themselves.

    Raises ValueError for a name that this configuration lacks, with the nearest right one, and for a value
    that is given twice or has no meaning there.
    """
    found: dict[str, Any] = {}
    for name, values in assignments(words, "--variants").items():
        repeated = [v for v in values if values.count(v) > 1]
        if repeated:
            raise ValueError(f"--variants gives {name}={repeated[0]} twice; equal settings give equal runs")
        if name in NAMED:
            found[name] = {v: NAMED[name](v) for v in values}
            continue
        resolve(config, name, static=True)
        try:
            found[name] = [None if v == "none" else int(v) for v in values]
        except ValueError:
            raise ValueError(
                f"{name} takes whole numbers here, not {','.join(values)}; by name there are "
                f"{', '.join(NAMED)}"
            ) from None
    return found


def _optimizer(name: str) -> Any:
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; {nearest(name, OPTIMIZERS)}")
    return OPTIMIZERS[name]()


def _expectation(name: str) -> Any:
    if name not in EXPECTATIONS:
        raise ValueError(f"unknown expectation {name!r}; {nearest(name, EXPECTATIONS)}")
    return EXPECTATIONS[name]


NAMED: dict[str, Callable[[str], Any]] = {
    "method": presets.parse,
    "optimizer": _optimizer,
    "expectation": _expectation,
}
"""Slots that are filled by name."""


def traced(config: Config) -> str:
    """The traced numbers of a configuration, one a line."""
    leaves = leaf_paths(config)
    scalars = {path: leaf for path, leaf in leaves.items() if np.ndim(leaf) == 0}
    tables = {path: np.shape(leaf) for path, leaf in leaves.items() if np.ndim(leaf)}
    short = {path: f"  ({name})" for name, path in ALIASES.items()}
    lines = [f"  {path} = {leaf:g}{short.get(path, '')}" for path, leaf in scalars.items()]
    return "\n".join(lines + [f"  {path}: table {shape}" for path, shape in tables.items()])
