"""`python -m experiments --policy tree mlp transformer`: computes the transfer ledger, prints and checks
it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from experiments.harness.scripts import Refusal
from experiments.transfer import page, table


def run(
    claims: Sequence[str],
    policies: Sequence[str],
    *,
    size: str | None,
    seed: int | None,
    out: Path,
    jobs: int,
    again: bool,
    check: bool,
    update: bool,
    listed: bool,
) -> int:
    """Compute the cells of these claims and policies, and print them; the arguments are those of `main`.

    Returns: 0; 1 where a cell could not be computed or a check found a difference; 2 where the request
    has no meaning.
    """
    committed = table.read()
    size = size or committed.get("size", "quick")
    seed = committed.get("seed", 0) if seed is None else seed
    try:
        chosen, names = table.choose(claims, policies)
        refuse(committed, size=size, jobs=jobs, check=check, update=update)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    if listed:
        print("\n".join(f"{claim:5} {table.says(table.functions()[claim])[0]}" for claim in chosen))
        return 0
    began = time.perf_counter()
    kept = out / "transfer" / "cells.json"
    found, lost = [], []
    work = table.compute(chosen, names, size=size, seed=seed, out=kept, jobs=jobs, again=again)
    with tqdm(total=len(chosen) * len(names), unit="cell", disable=None) as bar:
        for claim, policy, made in work:
            rows = ", ".join(f"{id} {row['verdict']}" for id, row in made.get("rows", {}).items())
            if "error" in made:
                lost.append(f"{claim} on {policy}: {made['error']}")
            bar.write(f"{time.perf_counter() - began:5.0f} s  {policy}: {rows or lost[-1]}")
            bar.update()
            found.append((claim, policy, made))
    cells = table.gathered(found)
    print(f"\n{table.text(cells)}\n{len(found)} cells took {time.perf_counter() - began:.0f} s.")
    print(page.write(out, cells))
    wrong = table.differences(cells, committed, size=size) if check else []
    if check:
        print("\n".join(wrong) if wrong else f"The verdicts are those of {table.COMMITTED.name}.")
    if update:
        table.write(table.updated(committed, cells, size=size, seed=seed))
    print("".join(f"{line}\n" for line in lost), end="", file=sys.stderr)
    return int(bool(wrong or lost))


def refuse(committed: dict[str, Any], *, size: str, jobs: int, check: bool, update: bool) -> None:
    """Raise `Refusal` where the request has no meaning, before anything runs."""
    if jobs < 1:
        raise Refusal(f"--jobs is at least 1; got {jobs}")
    if check and update:
        raise Refusal("--check compares with the ledger and --update-ledger changes it: choose one")
    if check and committed.get("size") != size:
        raise Refusal(f"there is nothing to check: no table is committed at size {size}")
    if update and size == "smoke":
        raise Refusal("verdicts of smoke runs are not entered into the transfer ledger; choose quick or full")
