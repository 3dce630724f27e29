"""Run the claims: `python -m experiments A5 B3 --size smoke --seed 1 --out results`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import tyro
from tqdm.auto import tqdm

from experiments import harness, report
from experiments.harness import Claim, Job, Outcome, Refusal, Size

Flag = tyro.conf.FlagCreatePairsOff[bool]


def main(
    claims: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    size: Size | None = None,
    seed: int | None = None,
    out: Path = Path("results"),
    jobs: int = 2,
    scripts: Path = harness.SCRIPTS,
    list_: Annotated[Flag, tyro.conf.arg(name="list")] = False,
    check: Flag = False,
    update_ledger: Flag = False,
) -> int:
    """Run claims of the papers and write what came out.

    Every claim runs in a process of its own and writes `<out>/<claim>/{data.nc, record.json, figure.png}`;
    `<out>/index.html` shows all of them. The exit status is 0 when all ran, whatever their verdicts, 1 when
    one crashed or a check found a difference, and 2 when the request has no meaning.

    Args:
      claims: Claims to run, such as A5 B3; all of them if none is named.
      size: How much to simulate; quick, or with --check the committed size.
      seed: Seed of every random number; 0, or with --check the committed seed.
      out: Folder of the results.
      jobs: How many claims run at once.
      scripts: Folder of the claims' scripts and of ledger.json.
      list_: Only list the claims.
      check: Compare the verdicts with the committed ledger.
      update_ledger: Enter the verdicts into the committed ledger and the README beside it.
    """
    try:
        chosen = harness.choose(harness.find_claims(scripts), claims)
        if list_:
            print("\n".join(f"{claim.id:5} {claim.title}" for claim in chosen))
            return 0
        ledger = report.read_ledger(scripts / "ledger.json")
        planned = plan(chosen, ledger if check else {}, size=size, seed=seed)
        refuse(planned, out, jobs=jobs, check=check, update_ledger=update_ledger)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    outcomes = run(planned, out, jobs)
    if update_ledger:
        report.update_ledger(scripts / "ledger.json", outcomes)
        readme = scripts.parent / "README.md"
        if readme.exists():
            report.update_readme(
                readme, report.ledger_table(report.read_ledger(scripts / "ledger.json"), scripts)
            )
    gone = (
        []
        if claims
        else [f"{name}: committed, but has no script" for name in set(ledger) - {c.id for c in chosen}]
    )
    found = [*report.differences(ledger, outcomes), *gone] if check else []
    if check:
        print("\n".join(found) if found else "The verdicts are those of the ledger.")
    return int(bool(found) or any(outcome.record is None for outcome in outcomes))


def plan(chosen: list[Claim], committed: report.Ledger, *, size: Size | None, seed: int | None) -> list[Job]:
    """A job for each claim: what was asked for, else what was committed, else quick and seed 0."""
    entries = [committed.get(claim.id, {}) for claim in chosen]
    return [
        Job(claim, size or entry.get("size", "quick"), entry.get("seed", 0) if seed is None else seed)
        for claim, entry in zip(chosen, entries, strict=True)
    ]


def refuse(planned: list[Job], out: Path, *, jobs: int, check: bool, update_ledger: bool) -> None:
    """Raise `Refusal` where the request has no meaning, before anything runs."""
    if not planned:
        raise Refusal("there are no claims to run")
    if jobs < 1:
        raise Refusal(f"--jobs is at least 1; got {jobs}")
    if check and update_ledger:
        raise Refusal("--check compares with the ledger and --update-ledger changes it: choose one")
    if update_ledger and any(job.size == "smoke" for job in planned):
        raise Refusal("the ledger holds no verdicts of smoke runs")
    harness.refuse_to_overwrite(planned, out)


def run(planned: list[Job], out: Path, at_once: int) -> list[Outcome]:
    """Run the jobs under a progress bar, print the ledger, and write the index."""
    outcomes = []
    with tqdm(total=len(planned), unit="claim", disable=None) as bar:
        for outcome in harness.run_jobs(planned, out, at_once=at_once):
            outcomes.append(outcome)
            verdict = outcome.record["verdict"] if outcome.record else f"crashed\n{outcome.crash}"
            bar.write(f"{outcome.job.claim.id}: {verdict}")
            bar.update()
    print(f"\n{report.ledger_text(outcomes)}\n{report.write_index(out)}")
    return outcomes


if __name__ == "__main__":
    try:
        try:
            status = tyro.cli(main, prog="python -m experiments")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # its reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
