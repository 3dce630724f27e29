"""The table of claim × policy → verdict: computed cell by cell, kept, compared and printed, failures
first."""

from __future__ import annotations

import concurrent.futures
import importlib
import inspect
import json
import multiprocessing
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.harness.provenance import source
from experiments.harness.scripts import Refusal, claim_order
from experiments.harness.verdict import Claim, whose
from grpo_jax.part import nearest

COMMITTED = Path(__file__).resolve().parent.parent / "transfer.json"
MODULES = ("a_alignment", "b_biases", "c_ratios", "d_samplers", "e_rewards")
POLICY_NAMES = ("tree", "mlp", "transformer", "narrow")
"""As in `policies.POLICIES`; here nothing imports JAX."""
SIZES = {"smoke": (4, 0.1), "quick": (16, 1.0), "full": (64, 1.0)}
"""Size -> seeds, and the share of the training that a claim asks for."""
CONTROL = "tree"

Cells = dict[str, dict[str, Any]]
"""Row, such as B2.1 -> says, claim, and by policy its verdict, found and because."""


def functions() -> dict[str, Callable[..., None]]:
    """Claim -> the function that judges it."""
    found: dict[str, Callable[..., None]] = {}
    for module in MODULES:
        parts = vars(importlib.import_module(f"experiments.transfer.{module}"))
        found |= {
            name.upper(): part
            for name, part in parts.items()
            if inspect.isfunction(part) and name[:1] == module[0] and name[1:].isdigit()
        }
    return dict(sorted(found.items(), key=lambda item: claim_order(item[0])))


def says(function: Callable[..., None]) -> tuple[str, str]:
    """The sentence that a function judges, and the rule by which it does."""
    sentence, _, rule = inspect.cleandoc(function.__doc__ or "").partition("\n\n")
    return " ".join(sentence.split()), rule


def judged(claim: str, policy: str, size: str, seed: int) -> dict[str, Any]:
    """One claim on one policy, in double precision: its rows (says, verdict, found, because) and seconds."""
    import jax

    from experiments.transfer.policies import World
    from grpo_jax import runtime

    runtime.keep_compilations()
    seeds, patience = SIZES[size]
    function = functions()[claim]
    began = time.perf_counter()
    with jax.enable_x64(True):
        made = Claim(claim, says(function)[0])
        function(World(policy, seeds=seeds, root=seed, patience=patience), made)
    rows = {}
    for row in (made, *made.rows):
        verdict = row.verdict()
        words = {"verdict": verdict.verdict, "found": verdict.found, "because": verdict.because}
        rows[row.id] = {"says": row.says} | words
    return {"rows": rows, "seconds": round(time.perf_counter() - began, 1)}


def choose(claims: Sequence[str], policies: Sequence[str]) -> tuple[list[str], list[str]]:
    """Claims and policies of these names; claims may stand among the policies. `Refusal` for others."""
    known = list(functions())
    letters = {name[:1] for name in known}
    names = [*claims, *(name for name in policies if name.lower() not in POLICY_NAMES)]
    asked: set[str] = set()
    for name in names:
        if name.upper() in known:
            asked.add(name.upper())
        elif name.upper() in letters:
            asked |= {claim for claim in known if claim.startswith(name.upper())}
        elif name.upper() == "ALL":
            asked |= set(known)
        elif name in claims or (name[:1].upper() in letters and name[1:].isdigit()):
            raise Refusal(f"the transfer ledger has no claim {name!r}: {nearest(name.upper(), known)}")
        else:
            raise Refusal(f"unknown policy {name!r}: {nearest(name, POLICY_NAMES)}")
    wanted = {name.lower() for name in policies} & set(POLICY_NAMES)
    chosen = [policy for policy in POLICY_NAMES if policy in wanted] or list(POLICY_NAMES)
    return [claim for claim in known if not names or claim in asked], chosen


def compute(
    claims: Sequence[str], policies: Sequence[str], *, size: str, seed: int, out: Path, jobs: int, again: bool
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every cell as it comes: claim, policy, and what `judged` gives, or its error.

    Each is kept in `out` as soon as it is there; what the same code has kept is not computed again.
    """
    made_by = {"source": source(), "size": size, "seed": seed}
    held = _read(out)
    kept = held.get("cells", {}) if {k: held.get(k) for k in made_by} == made_by and not again else {}
    left = []
    for claim in claims:
        for policy in policies:
            if found := kept.get(f"{claim} {policy}"):
                yield claim, policy, found
            else:
                left.append((claim, policy))
    left.sort(key=lambda cell: cell[1] != "transformer")  # the slowest first
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        waiting = {pool.submit(judged, *cell, size, seed): cell for cell in left}
        try:
            for done in concurrent.futures.as_completed(waiting):
                claim, policy = waiting[done]
                if (error := done.exception()) is not None:
                    yield claim, policy, {"error": f"{type(error).__name__}: {error}"}
                    continue
                kept[f"{claim} {policy}"] = done.result()
                _write(out, made_by | {"cells": kept})
                yield claim, policy, done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def gathered(found: Sequence[tuple[str, str, dict[str, Any]]]) -> Cells:
    """The table: its rows in the order of the claims."""
    cells: Cells = {}
    for claim, policy, made in found:
        for id, row in made.get("rows", {}).items():
            words = {key: row[key] for key in ("verdict", "found", "because")}
            own = cells.setdefault(id, {"claim": claim, "says": row["says"], "policies": {}})
            own["policies"][policy] = words
    for row in cells.values():
        row["policies"] = {name: row["policies"][name] for name in POLICY_NAMES if name in row["policies"]}
    return dict(sorted(cells.items(), key=lambda item: claim_order(item[0])))


def outcome(row: dict[str, Any]) -> str:
    """What became of a row: "fails" where a network's verdict is another one than the table's, "open" where
    one of them is not decided, else "transfers"; "" where the table or every network is missing."""
    verdicts = {name: cell["verdict"] for name, cell in row["policies"].items()}
    control = verdicts.pop(CONTROL, None)
    if control is None or not verdicts:
        return ""
    if control != OPEN and set(verdicts.values()) - {control, OPEN}:
        return "fails"
    return "open" if OPEN in {control, *verdicts.values()} else "transfers"


OPEN = "not testable here"
TOLD = {"fails": "does not transfer", "open": "open", "transfers": "transfers", "": ""}


def ordered(cells: Cells) -> list[str]:
    """Rows, those first that fail to transfer, then those that are open; of both, refuted ones first."""

    def place(id: str) -> tuple[int, bool]:
        verdicts = [cell["verdict"] for cell in cells[id]["policies"].values()]
        return list(TOLD).index(outcome(cells[id])), "refuted" not in verdicts

    return sorted(cells, key=place)


def counts(cells: Cells) -> Counter[str]:
    """How many rows fail, are open, transfer."""
    return Counter(outcome(row) for row in cells.values())


def text(cells: Cells) -> str:
    """For the terminal."""
    lines = []
    for id in ordered(cells):
        row = cells[id]
        lines.append(f"{id:6} {TOLD[outcome(row)]}".rstrip())
        who, sentence = whose(row["says"])
        lines += _paragraph(f"{'Ours: ' if who == 'Ours' else ''}{sentence}", 7)
        for name, cell in row["policies"].items():
            lines += _paragraph(f"{name}: {cell['verdict'].upper()}. {cell['found'] or cell['because']}", 9)
    number = counts(cells)
    total = f"{number['fails']} fail to transfer, {number['open']} open, {number['transfers']} transfer."
    return "\n".join([*lines, f"Sentences: {len(cells)}; {total}"])


def _paragraph(words: str, indent: int) -> list[str]:
    return textwrap.wrap(words, 108, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2))


def differences(cells: Cells, committed: dict[str, Any], *, size: str) -> list[str]:
    """What these cells say otherwise than the committed table, a sentence each."""
    if committed.get("size") != size:
        return [f"nothing is committed at size {size}"]
    found = []
    before = committed["rows"]
    for id, row in cells.items():
        for name, cell in row["policies"].items():
            was = before.get(id, {}).get("policies", {}).get(name, {}).get("verdict", "nothing")
            if was != cell["verdict"]:
                found.append(f"{id} on {name}: committed {was}, now {cell['verdict']}")
    ran = {row["claim"]: set(row["policies"]) for row in cells.values()}
    for id, row in before.items():
        for name in set(row["policies"]) & ran.get(row["claim"], set()):
            if name not in cells.get(id, {"policies": {}})["policies"]:
                found.append(f"{id} on {name}: committed {row['policies'][name]['verdict']}, now absent")
    return found


def updated(committed: dict[str, Any], cells: Cells, *, size: str, seed: int) -> dict[str, Any]:
    """The committed table with these cells in the place of the same claims' and policies'."""
    rows: Cells = {}
    fresh = {(row["claim"], name) for row in cells.values() for name in row["policies"]}
    for table in (committed.get("rows", {}), cells):
        for id, row in table.items():
            own = rows.setdefault(id, {"claim": row["claim"], "says": row["says"], "policies": {}})
            own["says"] = row["says"]
            own["policies"] |= {
                name: cell
                for name, cell in row["policies"].items()
                if table is cells or (row["claim"], name) not in fresh
            }
    rows = {id: row for id, row in rows.items() if row["policies"]}
    for row in rows.values():
        row["policies"] = {name: row["policies"][name] for name in POLICY_NAMES if name in row["policies"]}
    order = sorted(rows, key=claim_order)
    return {"size": size, "seed": seed, "rows": {id: rows[id] for id in order}}


def read() -> dict[str, Any]:
    """The committed table; empty where there is none."""
    return _read(COMMITTED)


def write(table: dict[str, Any]) -> None:
    """Commit a table."""
    _write(COMMITTED, table)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write(path: Path, table: dict[str, Any]) -> None:
    from experiments.harness.run import replace_text

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
