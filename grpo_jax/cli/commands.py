"""The commands: methods, penalties, problems, options, run, sweep, show, report, paths, diff.

`checking` adds two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import jax
import numpy as np
import tyro
import xarray as xr

import grpo_jax
from grpo_jax import methods as method_table
from grpo_jax import presets, runtime
from grpo_jax.cli.build import Setup, axes, build, traced, variants
from grpo_jax.cli.launch import Cluster, chosen_share, joined, launch, wait
from grpo_jax.exact import penalties as penalty_table
from grpo_jax.part import nearest
from grpo_jax.parts.gains import Clip
from grpo_jax.presets.traits import kl
from grpo_jax.sweeps import Unfinished, load
from grpo_jax.sweeps import sweep as run_sweep
from grpo_jax.sweeps.dataset import label, non_finite
from grpo_jax.sweeps.interrupt import Interrupted
from grpo_jax.tasks import chance

PROGRAM = "python -m grpo_jax"
COMMANDS: dict[str, Callable[..., None]] = {}
"""Name of a command -> what it does, in the order of the help text."""
F = TypeVar("F", bound=Callable[..., None])


def command(function: F) -> F:
    """Make a function a command of its own name; its signature and docstring are what the shell sees."""
    COMMANDS[function.__name__] = function
    return function


@command
def methods(markdown: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False) -> None:
    """List the methods: each slot's part, with the numbers that a sweep can vary.

    Args:
        markdown: print the table of the documentation instead.
    """
    if markdown:
        print(method_table.table())
        return
    for name, method in method_table.METHODS.items():
        slots = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
        shown = (f"{slot:<12}{_spell(part)}" for slot, part in slots.items() if part not in (None, ()))
        print(f"{name}\n    " + "\n    ".join(shown))
    print(f"\n{_unlike()}")


def _unlike() -> str:
    """In which numbers the methods' own defaults differ, so that a comparison is none of these."""
    coefs = {name: kl(method) for name, method in method_table.METHODS.items()}
    held = [f"{name} {found[2]:g}" for name, found in coefs.items() if found is not None and found[2]]
    clips = {
        f"{name} [{1 - m.gain.low:g}, {1 + m.gain.high:g}]"
        for name, m in method_table.METHODS.items()
        if isinstance(m.gain, Clip) and (m.gain.low, m.gain.high) != (Clip().low, Clip().high)
    }
    return (
        "every method has its paper's own numbers, and they differ: a KL penalty is on in "
        f"{', '.join(held)}; ratios are clipped otherwise in {', '.join(sorted(clips))}; to compare at equal "
        "numbers write --set kl_coef=0, clip_low=0.2, clip_high=0.2, as far as a method has them"
    )


def _spell(part: object) -> str:
    return method_table.describe(part, defaults=True)


@command
def penalties() -> None:
    """Print what every library's penalty descends, as a Markdown table: exact gradients on a small tree."""
    print(penalty_table.report())


@command
def options(library: tyro.conf.Positional[str]) -> None:
    """List a library's options that are modelled, with their defaults: what LIBRARY:NAME,option=value takes.

    Args:
        library: trl, verl, openrlhf, liger, prime_rl, areal, nemo_rl or open_instruct.
    """
    if library not in presets.PRESETS:
        raise ValueError(f"unknown library {library!r}; {nearest(library, presets.PRESETS)}")
    for name, option in inspect.signature(presets.PRESETS[library]).parameters.items():
        if option.kind is inspect.Parameter.KEYWORD_ONLY:
            print(f"{name}={option.default!r}")


@command
def problems(draws: int = 1_000_000) -> None:
    """List the generators of problems for networks: an example, sizes, and how often random tokens are right.

    Args:
        draws: answers to sample where they are too many to list (then with a 99.9 % interval).
    """
    print(chance.table(draws=draws))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How long, how often, where to."""

    seeds: int = 64
    """Number of seeds."""
    iterations: int = 200
    """Training iterations."""
    record_every: int = 10
    """Record every n-th iteration."""
    record: tuple[str, ...] = ()
    """Diagnostics to record; the usual ones by default."""
    root: int = 0
    """Seed root."""
    out: Path | None = None
    """Folder for the results; an interrupted sweep goes on where it stopped."""
    x64: bool = False
    """Double precision."""


SETUP, TRAINING, CLUSTER = Setup(), Training(), Cluster()


@command
def run(
    setup: Annotated[Setup, tyro.conf.arg(name="")] = SETUP,
    train: Annotated[Training, tyro.conf.arg(name="")] = TRAINING,
) -> None:
    """Train one setting with many seeds and print what became of it."""
    _simulate(setup, train, (), ())


@command
def sweep(
    setup: Annotated[Setup, tyro.conf.arg(name="")] = SETUP,
    train: Annotated[Training, tyro.conf.arg(name="")] = TRAINING,
    cluster: Annotated[Cluster, tyro.conf.arg(name="")] = CLUSTER,
    sweep: tuple[str, ...] = (),
    variants: tuple[str, ...] = (),
) -> None:
    """Train a grid of settings: --sweep learning_rate=1e-3,1e-2 kl_coef=0,0.04 --variants method=grpo,dapo.

    Args:
        setup: what is trained on what.
        train: how long, how often, where to.
        cluster: which processes work at it.
        sweep: traced numbers, one program for all: path=value,value.
        variants: structure, one program each: method=grpo,dapo group_size=4,8 optimizer=sgd,adamw.
    """
    share = chosen_share(cluster.share)
    if cluster.launch is None:
        if share and cluster.distributed:
            raise ValueError("--share is for processes that do not know of each other, not for --distributed")
        with joined(train.out) if cluster.distributed else contextlib.nullcontext():
            _simulate(setup, train, sweep, variants, share)
        return
    jobs = launch(cluster, sys.argv[1:], train.out)
    print(f"jobs {', '.join(str(job.job_id) for job in jobs)}; logs in {train.out}/launch", file=sys.stderr)
    if cluster.launch == "local" and train.out is not None:
        wait(jobs)
        print(summary(load(train.out)))


def _simulate(
    setup: Setup,
    train: Training,
    sweep: tuple[str, ...],
    structure: tuple[str, ...],
    share: tuple[int, int] | None = None,
) -> None:
    jax.config.update("jax_enable_x64", train.x64)
    config = build(setup)
    try:
        data = run_sweep(
            config,
            axes(sweep),
            variants=variants(structure, config),
            seeds=train.seeds,
            iterations=train.iterations,
            record_every=train.record_every,
            record=train.record or None,
            root=train.root,
            out=train.out,
            share=share,
        )
    except Unfinished as others:
        if share is None:
            raise
        print(others, file=sys.stderr)  # its own share is done
        return
    if jax.process_index():  # one process speaks
        return
    print(summary(data))
    if train.out:
        print(f"written to {train.out}", file=sys.stderr)


def summary(data: xr.Dataset) -> str:
    """Final values (or averages), mean ± standard deviation over seeds, a row per setting.

    What has axes of its own is a column for each of its first places; how many are left out is said.
    """
    averaged = "iteration" not in data.dims
    last = data if averaged else data.isel(iteration=-1)
    columns, left_out = _columns(last, _grid(data))
    rows = [[*_grid(data), *columns]]
    last = xr.Dataset(columns)
    for place in np.ndindex(*(data.sizes[dim] for dim in _grid(data))):
        at = dict(zip(_grid(data), place, strict=True))
        one = last.isel(at)
        labels = [label(data, dim, i) for dim, i in at.items()]
        rows.append(labels + [_spread(one[n].values) for n in columns])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    made = data.attrs
    when = (
        f"averages over the iterations from {made['average_from']} to {made['iterations']}"
        if averaged
        else f"at iteration {int(data.iteration[-1])}"
    )
    lines = [f"{when}, mean ± standard deviation over {data.sizes['seed']} seeds"]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += left_out
    return "\n".join([*lines, *filter(None, [non_finite(data)])])


def _spread(values: np.ndarray) -> str:
    """Mean ± standard deviation of the finite ones."""
    values = values[np.isfinite(values)]
    return f"{values.mean():.4g}±{values.std():.2g}" if values.size else "not finite"


PLACES = 8
"""Places of a measure that the summary shows at most."""


def _columns(last: xr.Dataset, grid: list[str]) -> tuple[dict[str, xr.DataArray], list[str]]:
    """Heading -> values of each setting and seed, and a line for each measure that is shown in part."""
    columns: dict[str, xr.DataArray] = {}
    left_out = []
    for name, values in last.drop_vars("finite", errors="ignore").data_vars.items():
        own = [d for d in values.dims if d not in (*grid, "seed")]
        sizes = [values.sizes[d] for d in own]
        places = list(itertools.islice(np.ndindex(*sizes), PLACES))
        for place in places:
            one = values.isel(dict(zip(own, place, strict=True)))
            labels = [label(values, str(d), i) for d, i in zip(own, place, strict=True)]
            heading = f"{name}[{', '.join(labels)}]" if own else str(name)
            columns[heading] = one.drop_vars(own, errors="ignore")
        if len(places) < math.prod(sizes):
            size, axes_of = math.prod(sizes), " x ".join(map(str, own))
            left_out.append(f"{name} has {size} places ({axes_of}); the first {PLACES} are shown")
    return columns, left_out


def _grid(data: xr.Dataset) -> list[str]:
    return [str(d) for d in data["finite"].dims if d not in ("seed", "iteration")]


@command
def show(folder: tyro.conf.Positional[Path]) -> None:
    """Print the settings and the final diagnostics of a finished sweep.

    Args:
        folder: where the sweep was written (--out).
    """
    data = load(folder)
    print(data)
    print(summary(data))


@command
def report(folder: tyro.conf.Positional[Path], out: Path | None = None) -> None:
    """Make a page of a finished sweep: curves, a table, what was run. One file that needs nothing else.

    For example: python -m grpo_jax report runs/demo

    Args:
        folder: where the sweep was written (--out).
        out: the page; without it report.html in the folder.
    """
    from grpo_jax.pages import sweep_page

    page = out or folder / "report.html"
    page.write_text(sweep_page(load(folder), title=folder.resolve().name, folder=str(folder)), "utf-8")
    print(f"open it in a browser: {page}")


@command
def paths(setup: Annotated[Setup, tyro.conf.arg(name="")] = SETUP) -> None:
    """List the traced numbers of a setting: what --set and --sweep may name."""
    print(traced(build(setup)))


@command
def diff(
    first: tyro.conf.Positional[str],
    second: tyro.conf.Positional[str],
    group_size: int = 8,
    longest: float = 10.0,
) -> None:
    """Show, slot by slot, where two libraries' settings differ, what that means, and by how much on a batch.

    Args:
        first: LIBRARY:NAME with options, for example trl:dapo or verl:vanilla,kl_loss_coef=0.04.
        second: what to compare it with, written alike.
        group_size: G, for the numbers of what a difference means.
        longest: tokens of the longest answer, the shortest having one, for the same.
    """
    at = presets.Settings(group_size=group_size, longest=longest)
    print(presets.diff(first, second, at=at))


def dispatch(words: Sequence[str]) -> None:
    """Run the command that the first word names.

    Each command is parsed alone: what is said of a wrong option then names this command's options only.
    """
    if words and words[0] in COMMANDS:
        tyro.cli(COMMANDS[words[0]], prog=f"{PROGRAM} {words[0]}", args=words[1:])
    elif [*words] == ["--version"]:
        print(grpo_jax.__version__)
    elif words and not words[0].startswith("-"):
        raise ValueError(f"unknown command {words[0]!r}; {nearest(words[0], COMMANDS)}")
    else:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog=PROGRAM,
            description="Exact, massively vmapped simulations of GRPO and its relatives.",
            args=words,
        )


def main() -> None:
    """The entry point: an error in what was asked is one line, without a traceback; so are signals."""
    runtime.forgiving_streams()
    try:
        try:
            dispatch(sys.argv[1:])
        finally:
            sys.stdout.flush()  # here, so that a pipe closed by its reader shows here and not at exit
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, TypeError, KeyError, MemoryError, OSError, Unfinished) as error:
        print(f"error: {_said(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr, flush=True)
        if isinstance(stop, Interrupted):
            sys.exit(stop.exit_code)
        os._exit(130)  # at once: an exit in order would wait for the computation in flight


def _said(error: Exception) -> str:
    """What an error says; of one about a file, the file first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
