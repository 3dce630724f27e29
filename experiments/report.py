"""The ledger: on the terminal, as one self-contained page, and as the file that a check compares with."""

import base64
import html
import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.harness import Job, Outcome, claim_order, find_claims, replace_text
from experiments.verdict import VERDICTS

Ledger = dict[str, dict[str, Any]]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 60rem; margin: 3rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #ddd; }
h2 { margin-top: 3.5rem; } img { width: 100%; } small, .numbers { color: #555; font-size: .85rem; }
pre { white-space: pre-wrap; font-size: .8rem; background: #f6f6f6; padding: 1rem; }
.verdict { font-weight: 600; white-space: nowrap; }
.reproduced { color: #1a7f37; } .qualified { color: #9a6700; }
.refuted, .crashed { color: #cf222e; } .not { color: #57606a; }
"""


def ledger_text(outcomes: Iterable[Outcome]) -> str:
    """The outcomes of one command for the terminal: claim, verdict, seconds, title, and then the reason."""
    rows, counts = [f"{'claim':6} {'verdict':18} {'seconds':>7}  title"], Counter[str]()
    for outcome in sorted(outcomes, key=lambda outcome: claim_order(outcome.job.claim.id)):
        claim, record = outcome.job.claim, outcome.record
        verdict = record["verdict"] if record else "crashed"
        because = record["because"] if record else outcome.reason
        seconds = f"{record['seconds']:.1f}" if record else "-"
        rows.append(f"{claim.id:6} {verdict:18} {seconds:>7}  {claim.title}")
        rows += textwrap.wrap(because, 100, initial_indent=" " * 7, subsequent_indent=" " * 7)
        counts[verdict] += 1
    total = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return "\n".join([*rows, f"{counts.total()} claims: {total}"])


def write_index(out: Path) -> Path:
    """Write `index.html` from every record in `out`, of this run or an earlier one; returns its path."""
    folders = [
        path for path in out.iterdir() if any((path / name).exists() for name in ("record.json", "crash.txt"))
    ]
    rows, sections = [], []
    for folder in sorted(folders, key=lambda folder: claim_order(folder.name)):
        crash = folder / "crash.txt"
        text = crash.read_text(encoding="utf-8") if crash.exists() else None
        path = folder / "record.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        rows.append(_row(folder.name, record, crashed=text is not None))
        sections.append(_section(folder, record, text))
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Claims</title>
<style>{STYLE}</style>
<h1>Claims</h1><table><tr><th>claim</th><th>title</th><th>verdict</th><th>size</th><th>seconds</th></tr>
{"".join(rows)}</table>{"".join(sections)}</html>
"""
    replace_text(out / "index.html", page)
    return out / "index.html"


def _row(claim: str, record: dict[str, Any] | None, *, crashed: bool) -> str:
    verdict = "crashed" if crashed or record is None else record["verdict"]
    about = [_text(record[key]) if record else "" for key in ("title", "size", "seconds")]
    name = _text(claim)
    return _table_row(f'<a href="#{name}">{name}</a>', about[0], _badge(verdict), *about[1:])


def _text(data: Any) -> str:
    """What comes from a record, a script or a folder's name, as text of the page: never as markup."""
    return html.escape(str(data))


def _table_row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _badge(verdict: str) -> str:
    style = verdict.partition(" ")[0] if verdict in (*VERDICTS, "crashed") else ""
    return f'<span class="verdict {style}">{_text(verdict)}</span>'


def _section(folder: Path, record: dict[str, Any] | None, crash: str | None) -> str:
    crashed = f"{_badge('crashed')}<pre>{_text(crash)}</pre>" if crash else ""
    name = _text(folder.name)
    if record is None:
        return f'<h2 id="{name}">{name}</h2>{crashed}'
    figure = base64.b64encode((folder / "figure.png").read_bytes()).decode()
    numbers = "".join(_number_row(name, number) for name, number in record["numbers"].items())
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    made = f"{record['device']} · size {record['size']} · seed {record['seed']} · commit {record['commit']}"
    return f"""<h2 id="{name}">{name} · {_text(record["title"])}</h2>{crashed}
<p>{_badge(record["verdict"])} {_text(record["because"])}</p>
<img alt="{_text(record["title"])}" src="data:image/png;base64,{figure}">
<details class="numbers"><summary>numbers</summary><table><tr><th>name</th><th>value</th><th>interval</th>
<th>expected</th><th>holds</th></tr>{numbers}</table></details>
<p><small>{_text(record["paper"])}<br>{_text(f"{made} · {versions}")}</small></p>
"""


def _number_row(name: str, number: dict[str, Any]) -> str:
    def text(key: str) -> str:
        value = number.get(key)
        return f"{value:.5g}" if isinstance(value, float) else "not finite" if value is None else str(value)

    interval = f"[{text('low')}, {text('high')}]" if "low" in number else ""
    margin = f" ± {text('tolerance')}" if "tolerance" in number else ""
    relation = number.get("relation", "")
    expected = f"{relation} {text('expected')}{margin}" if "expected" in number else ""
    holds = {True: "yes", False: "no"}.get(number["holds"], "undecided") if "holds" in number else ""
    return _table_row(*map(_text, (name, text("value"), interval, expected, holds)))


def ledger_path(scripts: Path, size: str) -> Path:
    """The committed verdicts of this size: smoke runs, which decide less, have a file of their own."""
    return scripts / ("ledger_smoke.json" if size == "smoke" else "ledger.json")


def read_ledger(path: Path) -> Ledger:
    """The committed ledger, empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def committed(ledger: Ledger, job: Job) -> dict[str, Any]:
    """The ledger's entry for a claim if it is of the job's size; empty if there is none."""
    entry = ledger.get(job.claim.id, {})
    return entry if entry.get("size") == job.size else {}


def verdict_of(outcome: Outcome) -> str:
    """The verdict as a ledger holds it: of a smoke run that decides nothing it says that the size is why."""
    if outcome.record is None:
        return "crashed"
    verdict = outcome.record["verdict"]
    undecided = verdict == "not testable here" and outcome.job.size == "smoke"
    return "not testable at smoke size" if undecided else verdict


def update_ledger(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Enter the verdicts of these outcomes into the ledger; a crash leaves its claim's entry as it was.

    Smoke runs are entered without title and reason: their numbers serve as an alarm, not as findings.
    """
    ledger = read_ledger(path)
    for outcome in outcomes:
        if record := outcome.record:
            smoke = outcome.job.size == "smoke"
            keys = ("verdict", "size", "seed") if smoke else ("title", "verdict", "because", "size", "seed")
            entry = {key: record[key] for key in keys} | {"verdict": verdict_of(outcome)}
            ledger[record["claim"]] = entry | {"seconds": round(record["seconds"])}
    ordered = {claim: ledger[claim] for claim in sorted(ledger, key=claim_order)}
    replace_text(path, json.dumps(ordered, indent=2, ensure_ascii=False) + "\n")


def announcement(planned: Sequence[Job], ledger: Ledger, out: Path, at_once: int) -> str:
    """What is going to run and, where a run of the same size is on record or committed, how long it took."""
    took = [_seconds(job, ledger, out) for job in planned]
    names = [
        job.claim.id + ("" if seconds is None else f" ({seconds:.0f} s)")
        for job, seconds in zip(planned, took, strict=True)
    ]
    sizes = " and ".join(sorted({job.size for job in planned}))
    known = [seconds for seconds in took if seconds is not None]
    count = "1 claim" if len(planned) == 1 else f"{len(planned)} claims"
    start = f"Running {count} at size {sizes}, {at_once} at once: {', '.join(names)}."
    if not known:
        end = "How long they take is not known yet."
    else:
        which = "" if len(known) == len(planned) else f" of {len(known)} of them"
        wait = max(sum(known) / at_once, *known)
        end = f"The last runs{which} took {sum(known):.0f} s in all; so many at once, about {wait:.0f} s."
    return textwrap.fill(f"{start} {end}", 100)


def _seconds(job: Job, ledger: Ledger, out: Path) -> float | None:
    path = out / job.claim.id / "record.json"
    if path.exists() and (last := json.loads(path.read_text(encoding="utf-8")))["size"] == job.size:
        return last["seconds"]
    return committed(ledger, job).get("seconds")


def ledger_table(ledger: Ledger, scripts: Path) -> str:
    """The ledger as the README shows it: claim, script, verdict."""
    names = {name: claim.script.name for name, claim in find_claims(scripts).items()}
    rows = ["| claim | what it says | script | verdict |", "|---|---|---|---|"]
    for claim, entry in ledger.items():
        script = f"[`{names[claim]}`](experiments/{names[claim]})" if claim in names else "-"
        title = entry["title"].replace("|", "\\|")
        rows.append(f"| {claim} | {title} | {script} | {entry['verdict']} |")
    return "\n".join(rows)


def update_readme(path: Path, table: str) -> None:
    """Put the table between the README's ledger marks."""
    text = path.read_text(encoding="utf-8")
    before, start, rest = text.partition("<!-- ledger -->\n")
    _, end, after = rest.partition("<!-- /ledger -->")
    if not (start and end):
        raise ValueError(f"{path} has no ledger marks")
    replace_text(path, f"{before}{start}{table}\n{end}{after}")


def differences(ledger: Ledger, outcomes: Sequence[Outcome]) -> list[str]:
    """What these outcomes say otherwise than the ledger at their size, a sentence each."""
    found = []
    for outcome in outcomes:
        now = verdict_of(outcome)
        before = committed(ledger, outcome.job).get("verdict", f"nothing at size {outcome.job.size}")
        if now != before:
            found.append(f"{outcome.job.claim.id}: committed {before}, now {now}")
    return found
