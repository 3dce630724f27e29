"""The committed verdicts: as a file that a check compares with, on the terminal, and in `docs/ledger.md`."""

from __future__ import annotations

import json
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.harness.run import Job, Outcome, read_record, replace_text
from experiments.harness.scripts import claim_order, find_scripts
from experiments.harness.verdict import whose

Ledger = dict[str, dict[str, Any]]


def ledger_path(scripts: Path, size: str) -> Path:
    """The committed verdicts of this size: smoke runs, which decide less, have a file of their own."""
    return scripts.parent / ("ledger_smoke.json" if size == "smoke" else "ledger.json")


def read_ledger(path: Path) -> Ledger:
    """The committed ledger, empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def committed(ledger: Ledger, job: Job) -> dict[str, Any]:
    """The ledger's entry for a claim if it is of the job's size; empty if there is none."""
    entry = ledger.get(job.script.id, {})
    return entry if entry.get("size") == job.size else {}


def verdict_of(row: dict[str, Any], job: Job) -> str:
    """The verdict as a ledger holds it: of a smoke run that decides nothing it says that the size is why."""
    undecided = row["verdict"] == "not testable here" and job.size == "smoke"
    return "not testable at smoke size" if undecided else row["verdict"]


def update_ledger(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Enter the verdicts of these outcomes into the ledger; a crash leaves its claim's entries as they were.

    Smoke runs are entered without words: their numbers serve as an alarm, not as findings.
    """
    ledger = read_ledger(path)
    for outcome in outcomes:
        if record := outcome.record:
            id, job = record["claim"], outcome.job
            ledger = {name: e for name, e in ledger.items() if name != id and not name.startswith(f"{id}.")}
            for row in record["rows"]:
                words = {} if job.size == "smoke" else {k: row[k] for k in ("says", "found", "because")}
                entry = {"verdict": verdict_of(row, job)} | words | {"size": job.size, "seed": job.seed}
                ledger[row["id"]] = entry
            ledger[id]["seconds"] = round(record["seconds"])
    ordered = {claim: ledger[claim] for claim in sorted(ledger, key=claim_order)}
    replace_text(path, json.dumps(ordered, indent=2, ensure_ascii=False) + "\n")


def keep_figures(folder: Path, outcomes: Iterable[Outcome], out: Path) -> None:
    """Copy the figures of these outcomes to `folder/<claim>.svg`, and their tables to `folder/<claim>.json`,
    where the site finds them."""
    folder.mkdir(exist_ok=True)
    for outcome in outcomes:
        if outcome.record:
            id = outcome.job.script.id
            shutil.copyfile(out / id / "figure.svg", folder / f"{id}.svg")
            if rows := outcome.record.get("table"):
                lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
                replace_text(folder / f"{id}.json", f"[\n{lines}\n]\n")


def differences(ledger: Ledger, outcomes: Sequence[Outcome]) -> list[str]:
    """What these outcomes say otherwise than the ledger at their size, a sentence each."""
    found = []
    for outcome in outcomes:
        job, id = outcome.job, outcome.job.script.id
        rows = outcome.record["rows"] if outcome.record else [{"id": id, "verdict": "crashed"}]
        now = {row["id"]: verdict_of(row, job) for row in rows}
        before = {
            name: entry["verdict"]
            for name, entry in ledger.items()
            if (name == id or name.startswith(f"{id}.")) and entry["size"] == job.size
        }
        for name in sorted({*now, *before}, key=claim_order):
            was, is_ = before.get(name, f"nothing at size {job.size}"), now.get(name, "absent")
            if was != is_ and (outcome.record or name == id):
                found.append(f"{name}: committed {was}, now {is_}")
    return found


def ledger_text(outcomes: Iterable[Outcome]) -> str:
    """The outcomes of one command for the terminal: what the paper says, the verdict, what we found."""
    lines, counts = [], Counter[str]()
    for outcome in sorted(outcomes, key=lambda outcome: claim_order(outcome.job.script.id)):
        script, record = outcome.job.script, outcome.record
        crashed = {"id": script.id, "says": script.says, "verdict": "crashed", "found": outcome.reason}
        for row in record["rows"] if record else [crashed]:
            seconds = f"  ({record['seconds']:.0f} s)" if record and row["id"] == script.id else ""
            lines.append(f"{row['id']:6} {row['verdict'].upper()}{seconds}")
            lines += _paragraph(*whose(row["says"]))
            lines += _paragraph("Found", row["found"] or row.get("because", ""))
            counts[row["verdict"]] += 1
    total = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return "\n".join([*lines, f"{counted(counts.total(), 'sentence')}: {total}"])


def counted(count: int, what: str) -> str:
    """``1 claim``, ``2 claims``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _paragraph(start: str, text: str) -> list[str]:
    return textwrap.wrap(f"{start}: {text}", 100, initial_indent=" " * 7, subsequent_indent=" " * 14)


def seconds(job: Job, ledger: Ledger, out: Path) -> float | None:
    """How long a job took when it was last run at this size, here or as committed; None if nobody knows."""
    last = read_record(out / job.script.id)
    known = last is not None and last["size"] == job.size and isinstance(last["seconds"], (int, float))
    if last is not None and known and 0 <= last["seconds"] < math.inf:
        return last["seconds"]
    return committed(ledger, job).get("seconds")


def announcement(planned: Sequence[Job], ledger: Ledger, out: Path, at_once: int) -> str:
    """What is going to run and, where a run of the same size is on record or committed, how long it took."""
    took = [seconds(job, ledger, out) for job in planned]
    names = [
        job.script.id + ("" if each is None else f" ({each:.0f} s)")
        for job, each in zip(planned, took, strict=True)
    ]
    of_size = " and ".join(sorted({job.size for job in planned}))
    known = [each for each in took if each is not None]
    count = "1 claim" if len(planned) == 1 else f"{len(planned)} claims"
    start = f"Running {count} at size {of_size}, {at_once} at once: {', '.join(names)}."
    if not known:
        end = "How long they take is not known yet."
    else:
        which = "" if len(known) == len(planned) else f" of {len(known)} of them"
        wait = max(sum(known) / at_once, *known)
        end = f"The last runs{which} took {sum(known):.0f} s in all; so many at once, about {wait:.0f} s."
    return textwrap.fill(f"{start} {end}", 100)


def ledger_table(ledger: Ledger, scripts: Path) -> str:
    """The ledger as `docs/ledger.md` shows it: what is said, the verdict, what we found."""
    names = {name: script.path.name for name, script in find_scripts(scripts).items()}
    rows = ["| | the paper says | verdict | what we found |", "|---|---|---|---|"]
    for claim, entry in ledger.items():
        script = names.get(claim.partition(".")[0])
        link = f"[{claim}](../experiments/claims/{script})" if script else claim
        who, says = whose(entry["says"])
        says = says if who == "Paper" else f"*ours:* {says}"
        cells = (link, says, f"**{entry['verdict']}**", entry["found"] or entry["because"])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def update_table(path: Path, name: str, table: str) -> None:
    """Put the table between the file's marks of this name."""
    text = path.read_text(encoding="utf-8")
    before, start, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (start and end):
        raise ValueError(f"{path} has no marks for {name}")
    replace_text(path, f"{before}{start}{table}\n{end}{after}")
