"""The table as a page of the results, and as the lines that the README shows."""

from __future__ import annotations

from pathlib import Path

from experiments.harness.run import replace_text
from experiments.harness.verdict import whose
from experiments.transfer import table
from grpo_jax.pages import render

TEMPLATES = (Path(__file__).parent,)


def rows(cells: table.Cells) -> list[dict]:
    """Rows in the order in which they are shown, with the sentence and whose it is apart."""
    found = []
    for id in table.ordered(cells):
        who, sentence = whose(cells[id]["says"])
        own = {
            "id": id,
            "ours": who == "Ours",
            "sentence": sentence,
            "outcome": table.TOLD[table.outcome(cells[id])],
        }
        found.append(own | cells[id])
    return found


def write(out: Path, cells: table.Cells) -> Path:
    """Write `<out>/transfer/index.html`; its path."""
    made = render(
        "transfer.html",
        folders=TEMPLATES,
        title="What survives a network",
        rows=rows(cells),
        policies=table.POLICY_NAMES,
    )
    path = out / "transfer" / "index.html"
    replace_text(path, made)
    return path
