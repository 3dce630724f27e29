"""The report: a start page with every claim's row, and a page a claim that holds its figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.harness.run import read_record, replace_text
from experiments.harness.scripts import claim_order
from experiments.harness.verdict import MEANING, whose
from grpo_jax.pages import picture, render

TEMPLATES = (Path(__file__).parent / "templates",)
PAGE = "index.html"


def write_index(out: Path) -> Path:
    """Write `index.html`, and one in each claim's folder, from every record in `out`, of this run or an
    earlier one; returns the path of the first."""
    folders = [
        path for path in out.iterdir() if any((path / name).exists() for name in ("record.json", "crash.txt"))
    ]
    rows: list[dict[str, Any]] = []
    for folder in sorted(folders, key=lambda folder: claim_order(folder.name)):
        crash = folder / "crash.txt"
        text = crash.read_text(encoding="utf-8") if crash.exists() else None
        record = read_record(folder)
        if record is None and text is None:
            continue  # of another version, or cut off: there is nothing to show until it runs again
        own = [] if record is None else [_row(row) for row in record["rows"]]
        shown = own
        if text is not None or not own:
            shown = [{"id": folder.name, "ours": False, "says": "", "verdict": "crashed", "found": ""}]
        rows += [row | {"claim": folder.name, "first": place == 0} for place, row in enumerate(shown)]
        replace_text(folder / PAGE, _page(folder, record, own, text))
    page = render(
        PAGE, folders=TEMPLATES, title="Claims about GRPO, checked", meanings=MEANING, rows=rows,
        transfer=(out / "transfer" / PAGE).exists(),
    )  # fmt: skip
    replace_text(out / PAGE, page)
    return out / PAGE


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A sentence with its verdict, and its numbers as texts."""
    who, sentence = whose(row["says"])
    return {
        "id": row["id"],
        "ours": who != "Paper",
        "says": sentence,
        "verdict": row["verdict"],
        "found": row["found"] or row["because"],
        "because": row["because"],
        "numbers": [_cells(name, number) for name, number in row["numbers"].items()],
    }


def _page(folder: Path, record: dict[str, Any] | None, rows: list[dict[str, Any]], crash: str | None) -> str:
    """A claim's own page."""
    found: dict[str, Any] = {"about": [], "paper": "", "made": "", "figure": None}
    if record is not None:
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        made = f"{record['device']} · size {record['size']} · seed {record['seed']} · {record['seconds']} s"
        figure = folder / "figure.svg"
        found = {
            "about": record["about"].split("\n\n"),
            "paper": record["paper"],
            "made": f"{made} · commit {record['commit']} · {versions}",
            "figure": picture(figure) if figure.exists() else None,
        }
    title = f"{folder.name}: {rows[0]['says']}" if rows else folder.name
    return render(
        "claim.html", folders=TEMPLATES, title=title, claim=folder.name, rows=rows, crash=crash, **found
    )


def _cells(name: str, number: dict[str, Any]) -> tuple[str, ...]:
    """Name, role, value, interval, expected, holds."""

    def text(key: str) -> str:
        value = number.get(key)
        return f"{value:.5g}" if isinstance(value, float) else "not finite" if value is None else str(value)

    interval = f"[{text('low')}, {text('high')}]" if "low" in number else ""
    margin = f" ± {text('tolerance')}" if "tolerance" in number else ""
    relation = number.get("relation", "")
    expected = f"{relation} {text('expected')}{margin}" if "expected" in number else ""
    holds = {True: "yes", False: "no"}.get(number["holds"], "undecided") if "holds" in number else ""
    value = f"{text('value')} at {number['at']}" if "at" in number else text("value")
    return name, number["role"], value, interval, expected, holds
