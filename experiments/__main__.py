"""Run the claims: `python -m experiments A5 B3 --size smoke --seed 1 --out results`."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro
from tqdm.auto import tqdm

from experiments.harness import ledger as ledgers
from experiments.harness import run as runs
from experiments.harness import scripts as claims_of
from experiments.harness.provenance import source
from experiments.harness.report import write_index
from experiments.harness.run import Job, Outcome
from experiments.harness.scripts import Refusal, Script, Size
from experiments.transfer import command as transfer
from grpo_jax.runtime import forgiving_streams
from grpo_jax.sweeps.interrupt import Interrupted, interruptible

Flag = tyro.conf.FlagCreatePairsOff[bool]
UNKNOWN = 15.0
"""Seconds that a claim is taken to need if nobody has timed it."""


def main(
    claims: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    size: Size | None = None,
    seed: int | None = None,
    out: Path = Path("results"),
    jobs: int = 2,
    scripts: Path = claims_of.SCRIPTS,
    list_: Annotated[Flag, tyro.conf.arg(name="list")] = False,
    again: Flag = False,
    check: Flag = False,
    update_ledger: Flag = False,
    policy: tuple[str, ...] = (),
) -> int:
    """Run claims of the papers and write what came out.

    Every claim runs in a process of its own and writes `<out>/<claim>/{data.nc, record.json, figure.svg}`,
    and `<out>/index.html` shows all of them. What the same code has finished in `<out>` is kept, so that a
    run that was interrupted goes on. The exit status is 0 when all ran, whatever their verdicts, 1 when one
    crashed or a check found a difference, and 2 when the request has no meaning.

    Args:
      claims: Claims to run, such as A5 B3; a letter such as D means all of its claims, all means every one.
        Without a name: those of the three papers, A B C, less those that stand apart (C7).
      size: How much to simulate; quick, or with --check the committed size.
      seed: Seed of every random number; the committed one, else 0.
      out: Folder of the results.
      jobs: How many claims run at once.
      scripts: Folder of the claims' scripts; the ledgers lie beside it.
      list_: Only list the claims.
      again: Run anew what the same code has finished, too.
      check: Compare the verdicts with the committed ones: ledger.json, of smoke runs ledger_smoke.json.
      update_ledger: Enter the verdicts into the committed ledger and docs/ledger.md, and keep their
        figures in docs/figures; verdicts of smoke runs into ledger_smoke.json.
      policy: The transfer ledger instead: the claims as sentences about sequences, judged on a tree, mlp,
        transformer or narrow (an MLP of two units); no claim's name means all of them. --check and
        --update-ledger then mean transfer.json.
    """
    if policy:
        return transfer.run(
            claims, policy, size=size, seed=seed, out=out, jobs=jobs, again=again, check=check,
            update=update_ledger, listed=list_,
        )  # fmt: skip
    try:
        found = claims_of.find_scripts(scripts)
        chosen = claims_of.choose(found, claims)
        if list_:
            print("\n".join(f"{script.id:5} {script.says}" for script in chosen))
            return 0
        path = ledgers.ledger_path(scripts, size or "quick")
        ledger = ledgers.read_ledger(path)
        planned = plan(chosen, ledger, size=size, seed=seed, check=check)
        refuse(planned, out, ledger, jobs=jobs, check=check, update_ledger=update_ledger)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    outcomes = run(planned, ledger, out, jobs, again=again)
    if update_ledger:
        ledgers.update_ledger(path, outcomes)
        docs = scripts.parent.parent / "docs"
        if (page := docs / "ledger.md").exists() and size != "smoke":
            ledgers.update_table(page, "ledger", ledgers.ledger_table(ledgers.read_ledger(path), scripts))
        if docs.exists() and size != "smoke":
            ledgers.keep_figures(docs / "figures", outcomes, out)
    gone = [f"{name}: no script" for name in ledger if name.partition(".")[0] not in found]
    wrong = [*ledgers.differences(ledger, outcomes), *gone] if check else []
    if check:
        print("\n".join(wrong) if wrong else f"The verdicts are those of {path.name}.")
    return int(bool(wrong) or any(outcome.record is None for outcome in outcomes))


def plan(
    chosen: list[Script], committed: ledgers.Ledger, *, size: Size | None, seed: int | None, check: bool
) -> list[Job]:
    """A job for each claim: the seed that was asked for, else the committed one, else 0; and the size alike.

    The committed size counts in a check only: without one it is quick.
    """
    entries = [committed.get(script.id, {}) for script in chosen]
    return [
        Job(
            script,
            size or (entry.get("size", "quick") if check else "quick"),
            entry.get("seed", 0) if seed is None else seed,
        )
        for script, entry in zip(chosen, entries, strict=True)
    ]


def refuse(
    planned: list[Job], out: Path, ledger: ledgers.Ledger, *, jobs: int, check: bool, update_ledger: bool
) -> None:
    """Raise `Refusal` where the request has no meaning, before anything runs."""
    if not planned:
        raise Refusal("there are no claims to run")
    if jobs < 1:
        raise Refusal(f"--jobs is at least 1; got {jobs}")
    if check and update_ledger:
        raise Refusal("--check compares with the ledger and --update-ledger changes it: choose one")
    if check and not any(ledgers.committed(ledger, job) for job in planned):
        raise Refusal(
            f"there is nothing to check: no verdict of these is committed at size {planned[0].size}"
        )
    runs.refuse_to_overwrite(planned, out)
    runs.refuse_unwritable(out)


def run(planned: list[Job], ledger: ledgers.Ledger, out: Path, at_once: int, *, again: bool) -> list[Outcome]:
    """Run what has not been finished, cheapest first, print the ledger, and write the index."""
    here = source()
    held = {} if again else {job.script.id: runs.finished(job, out, here) for job in planned}
    outcomes = [Outcome(job, record, None) for job in planned if (record := held.get(job.script.id))]
    left = [job for job in planned if not held.get(job.script.id)]
    if outcomes:
        names = ", ".join(outcome.job.script.id for outcome in outcomes)
        print(f"Finished before by the same code, kept (--again runs them anew): {names}.", flush=True)
    costs = {job.script.id: ledgers.seconds(job, ledger, out) or UNKNOWN for job in left}
    left.sort(key=lambda job: costs[job.script.id])
    if left:
        print(ledgers.announcement(left, ledger, out, at_once), flush=True)
    began = time.perf_counter()
    with interruptible(out, until="the claims that run are done") as stop:
        with tqdm(total=round(sum(costs.values())), unit="s of work", disable=None) as bar:
            for outcome in runs.run_jobs(left, out, at_once=at_once, stop=stop):
                outcomes.append(outcome)
                id = outcome.job.script.id
                rows = outcome.record["rows"] if outcome.record else []
                told = ", ".join(f"{row['id']} {row['verdict']}" for row in rows)
                bar.write(
                    f"{time.perf_counter() - began:5.0f} s  {told or f'{id} crashed: {outcome.reason}'}"
                )
                bar.update(round(costs[id]))
        ran = len(outcomes) - len(planned) + len(left)
        if outcomes:
            print(f"\n{ledgers.ledger_text(outcomes)}")
        if ran:
            print(f"{ledgers.counted(ran, 'claim')} took {time.perf_counter() - began:.0f} s.")
        if outcomes:
            print(write_index(out))
        if stop.signal is not None:
            done = f"stopped after {len(outcomes)} of {len(planned)} claims"
            raise Interrupted(f"{done}; what has finished is kept, and the same command goes on", stop.signal)
    return outcomes


def enter() -> int:
    """`main` for the shell: a reader that leaves early, as `head` does, ends it as it ends other programs."""
    forgiving_streams()
    try:
        try:
            return tyro.cli(main, prog="python -m experiments")
        finally:
            sys.stdout.flush()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("Interrupted; what has finished is kept, and the same command goes on.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit has a place to go
        return CLOSED_PIPE


INTERRUPTED = 130
"""The status that shells give to a program that Ctrl-C ended: 128 + SIGINT."""
CLOSED_PIPE = 141
"""The status that shells give to a program that wrote to a closed pipe: 128 + SIGPIPE."""

if __name__ == "__main__":
    sys.exit(enter())
