"""The commands that take another library's configuration: check, simulate."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from grpo_jax.check import Checked, Level, check_file, words
from grpo_jax.check import simulate as small
from grpo_jax.cli.commands import command

BOUNDS: dict[str, int] = {
    **{level.word.replace(" ", "-"): int(level) for level in Level},
    "never": len(Level),
}
"""``--fail-on`` -> the least level that makes the exit code 1."""
Bound = Literal["hazard", "worth-knowing", "note", "never"]


@command
def check(
    config: tyro.conf.Positional[str],
    overrides: tyro.conf.Positional[tuple[str, ...]] = (),
    library: str | None = None,
    fail_on: Bound = "hazard",
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    brief: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    simulate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Say what a library's configuration does, and every hazard with its size.

    The library is TRL, verl, OpenRLHF, AReaL, prime-rl, NeMo-RL or open-instruct. The file is YAML, JSON,
    TOML, a Python script that calls GRPOConfig(...), or a shell script; it is never executed. Exit code: 0,
    or 1 where something fires at --fail-on or above, or 2 for what cannot be read.

    For example:

    python -m grpo_jax check grpo.yaml

    python -m grpo_jax check run_verl.sh algorithm.adv_estimator=grpo actor_rollout_ref.rollout.n=8

    python -m grpo_jax check train.py --json --fail-on worth-knowing

    pbpaste | python -m grpo_jax check -

    Args:
        config: the file; - is the standard input.
        overrides: options over the file's: name=value, with the library's own names.
        library: trl, verl, openrlhf, areal, prime_rl, nemo_rl or open_instruct; left out, the options tell.
        fail_on: the least level that makes the exit code 1.
        json: print JSON instead, for a machine.
        brief: the findings alone.
        simulate: run it on a small task besides (``simulate`` has options for that).
    """
    found = check_file(config, overrides, library=library)
    width = shutil.get_terminal_size((words.WIDTH, 0)).columns
    print(words.as_json(*found) if json else words.text(*found, brief=brief, width=width))
    if simulate and not json:
        print()
        _simulated(found, seeds=32, iterations=small.ITERATIONS, learning_rate=None, out=None)
    elif not json and sys.stderr.isatty():
        claim = next((finding.claim.partition(",")[0] for finding in found.findings), "A8")
        print(
            f"\na claim's figure and numbers: python -m experiments {claim.partition('.')[0]}",
            file=sys.stderr,
        )
        again = shlex.join((config, *overrides))
        print(f"on a small task, with curves: python -m grpo_jax simulate {again}", file=sys.stderr)
    if found.worst is not None and found.worst >= BOUNDS[fail_on]:
        sys.exit(1)


@command
def simulate(
    config: tyro.conf.Positional[str],
    overrides: tyro.conf.Positional[tuple[str, ...]] = (),
    library: str | None = None,
    seeds: int = 32,
    iterations: int = small.ITERATIONS,
    learning_rate: float | None = None,
    out: Path | None = None,
) -> None:
    """Run a library's configuration on a small task and show the curves.

    Four prompts of unequal difficulty, answers of one to five tokens, a reward for the last one; the method,
    sampler, optimizer, group size and steps on a batch are the configuration's.

    For example:

    python -m grpo_jax simulate grpo.yaml --seeds 64 --out runs/mine

    Args:
        config: the file, as ``check`` takes it.
        overrides: options over the file's: name=value.
        library: as ``check`` takes it.
        seeds: number of runs.
        iterations: batches of each.
        learning_rate: the optimizer's, on this task; its default is made for it.
        out: folder for the dataset and its picture.
    """
    found = check_file(config, overrides, library=library)
    _simulated(found, seeds=seeds, iterations=iterations, learning_rate=learning_rate, out=out)


def _simulated(
    found: Checked, *, seeds: int, iterations: int, learning_rate: float | None, out: Path | None
) -> None:
    rate = small.RATE if learning_rate is None else learning_rate
    data, changed = small.run(found.setting, seeds=seeds, iterations=iterations, learning_rate=rate, out=out)
    print(f"{found.setting.title} on a small task: {seeds} runs of {iterations} batches")
    print(f"with {'; '.join(changed)}")
    print(small.curves(data))
    if out is None:
        print("--out FOLDER keeps the dataset and draws it", file=sys.stderr)
    else:
        for path in small.picture(data, out / "curves"):
            print(f"drawn in {path}", file=sys.stderr)
        print(f"look at it with: python -m grpo_jax show {out}", file=sys.stderr)
