"""The report: every claim on one page, `index.html`, beside the figures that it shows."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from experiments.harness.run import read_record, replace_text
from experiments.harness.scripts import claim_order
from experiments.harness.verdict import MEANING, VERDICTS, whose

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #ddd; }
h2 { margin-top: 3.5rem; } img { width: 100%; height: auto; }
small, .numbers, .about { color: #555; font-size: .85rem; }
pre { white-space: pre-wrap; font-size: .8rem; background: #f6f6f6; padding: 1rem; }
blockquote { margin: .5rem 0; padding-left: 1rem; border-left: 3px solid #ccc; }
.verdict { font-weight: 600; white-space: nowrap; }
.reproduced { color: #1a7f37; } .qualified { color: #8a5a00; }
.refuted, .crashed { color: #b3261e; } .not { color: #57606a; }
"""
INTRODUCTION = """Each row is a sentence that a paper prints (or, marked <i>ours</i>, one that we put
beside it), simulated on policies small enough that expectations can be computed exactly, and judged by
rules that its script states before it runs. The verdict is computed from the numbers; nobody writes it.
Intervals are 99.9 %."""


def write_index(out: Path) -> Path:
    """Write `index.html` from every record in `out`, of this run or an earlier one; returns its path."""
    folders = [
        path for path in out.iterdir() if any((path / name).exists() for name in ("record.json", "crash.txt"))
    ]
    rows, sections = [], []
    for folder in sorted(folders, key=lambda folder: claim_order(folder.name)):
        crash = folder / "crash.txt"
        text = crash.read_text(encoding="utf-8") if crash.exists() else None
        record = read_record(folder)
        if record is None and text is None:
            continue  # of another version, or cut off: there is nothing to show until it runs again
        rows.append(_rows(folder.name, record, crashed=text is not None))
        sections.append(_section(folder, record, text))
    meanings = "".join(f"<li>{_badge(name)}: {_text(words)}</li>" for name, words in MEANING.items())
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Claims about GRPO, checked</title>
<style>{STYLE}</style></head><body>
<h1>Claims about GRPO, checked</h1><p>{INTRODUCTION}</p><ul>{meanings}</ul>
<div class="wide"><table><tr><th></th><th>the paper says</th><th>verdict</th><th>what we found</th></tr>
{"".join(rows)}</table></div>{"".join(sections)}</body></html>
"""
    replace_text(out / "index.html", page)
    return out / "index.html"


def _rows(claim: str, record: dict[str, Any] | None, *, crashed: bool) -> str:
    name = _text(claim)
    if record is None or crashed:
        return _table_row(f'<a href="#{name}">{name}</a>', "", _badge("crashed"), "")
    return "".join(
        _table_row(
            f'<a href="#{name}">{_text(row["id"])}</a>',
            _said(row["says"]),
            _badge(row["verdict"]),
            _text(row["found"] or row["because"]),
        )
        for row in record["rows"]
    )


def _said(says: str) -> str:
    who, sentence = whose(says)
    return _text(sentence) if who == "Paper" else f"<i>ours:</i> {_text(sentence)}"


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
    first, *others = record["rows"]
    judged = _judgement(first) + "".join(
        f"<blockquote>{_said(row['says'])}</blockquote>{_judgement(row)}" for row in others
    )
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    made = f"{record['device']} · size {record['size']} · seed {record['seed']} · {record['seconds']} s"
    made += f" · commit {record['commit']}"
    about = "".join(f"<p>{_text(part)}</p>" for part in record["about"].split("\n\n"))
    says = _text(whose(first["says"])[1])
    return f"""<h2 id="{name}">{name} · {says}</h2>{crashed}
<div class="about">{about}</div>
<img loading="lazy" alt="{says}" src="{name}/figure.svg">
{judged}
<p><small>Again: <code>python -m experiments {name}</code> · <a href="{name}/data.nc">data</a> ·
<a href="{name}/figure.png">figure</a> · <a href="{name}/record.json">record</a><br>
{_text(record["paper"])}<br>
{_text(f"{made} · {versions}")}</small></p>
"""


def _judgement(row: dict[str, Any]) -> str:
    numbers = "".join(_number_row(name, number) for name, number in row["numbers"].items())
    head = "<tr><th>name</th><th>role</th><th>value</th><th>interval</th><th>expected</th><th>holds</th></tr>"
    return f"""<p>{_badge(row["verdict"])} {_text(row["found"])}</p>
<details class="numbers"><summary>the rule and its numbers</summary><p>{_text(row["because"])}</p>
<div class="wide"><table>{head}{numbers}</table></div></details>
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
    value = f"{text('value')} at {number['at']}" if "at" in number else text("value")
    return _table_row(*map(_text, (name, number["role"], value, interval, expected, holds)))
