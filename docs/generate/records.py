"""Pages of the ledger, of the claims' scripts and of the questions, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.generate import libraries, sampler
from docs.generate.answers import Ledger
from docs.generate.explorer import Explorer
from docs.generate.explorers import EXPLORERS
from docs.generate.formulas import FORMULAS
from docs.generate.longer import LONGER
from docs.generate.questions import QUESTIONS
from docs.generate.text import page, prose
from experiments.harness.ledger import ledger_path, read_ledger
from experiments.harness.scripts import PAPERS, SCRIPTS, Script, find_scripts
from experiments.harness.verdict import MEANING, whose
from experiments.transfer import page as transfer_page
from experiments.transfer import table as transfer
from experiments.transfer.policies import POLICIES
from grpo_jax import methods

ROOT = SCRIPTS.parent.parent
FIGURES = {"A7": "alignment.png", "D7": "sampler_map.png"}
"""Claims whose figure lies in ``docs/`` under a name of its own; others may lie in ``docs/figures``."""


def pages() -> Iterator[tuple[str, str]]:
    """(address in the site, Markdown) of every page that comes from records."""
    scripts, ledger = find_scripts(), read_ledger(ledger_path(SCRIPTS, "quick"))
    rows = [_row(name, ledger) for name in ledger]
    verdicts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in MEANING}
    yield "index.md", page("start.md", topics=_topics(ledger), claims=len(scripts), verdicts=verdicts)
    yield "claims/index.md", page("ledger.md", rows=rows, meaning=MEANING, verdicts=verdicts)
    yield "explore/index.md", page("explorers.md", explorers=EXPLORERS)
    yield "methods.md", page("methods.md", table=methods.table())
    yield "libraries.md", page("libraries.md", lines=libraries.lines())
    longer = [(question, question.answer(ledger)) for question in LONGER]
    yield "asked.md", page("asked.md", longer=longer)
    corrections, table = sampler.corrections(), sampler.rows(ROOT / "docs" / "figures")
    yield "sampler.md", page("sampler.md", claim=sampler.CLAIM, rows=table, corrections=corrections)
    yield "transfer.md", _transfer()
    yield "penalties.md", (ROOT / "docs" / "penalties.md").read_text(encoding="utf-8")
    for script in scripts.values():
        own = [row for row in rows if row["claim"] == script.id]
        yield f"claims/{script.id}.md", _claim(script, own, ledger)
        source = script.path.read_text(encoding="utf-8")
        yield (
            f"claims/{script.id}-script.md",
            page("script.md", script=script, where=_where(script), source=source),
        )


def _transfer() -> str:
    """The committed transfer ledger."""
    cells = transfer.read()["rows"]
    rules = {
        claim: "\n\n".join(prose(" ".join(part.split())) for part in transfer.says(function)[1].split("\n\n"))
        for claim, function in transfer.functions().items()
    }
    return page(
        "transfer.md",
        rows=transfer_page.rows(cells),
        counts=transfer.counts(cells),
        policies=POLICIES,
        rules=rules,
    )


def pictures() -> Iterator[tuple[str, Path]]:
    """(address in the site, file) of every figure that is committed."""
    for script in find_scripts().values():
        if found := _figure(script):
            yield f"figures/{script.id}{found.suffix}", found


def sections() -> list[dict[str, Any]]:
    """The claims for the site's navigation, a section for each letter."""
    found: dict[str, list[dict[str, str]]] = {}
    for script in find_scripts().values():
        noun = script.path.stem.partition("_")[2].replace("_", " ")
        found.setdefault(script.id[0], []).append({f"{script.id} {noun}": f"claims/{script.id}.md"})
    return [
        {f"{letter}: {re.split('[,?:]', PAPERS[letter])[0]}": entries} for letter, entries in found.items()
    ]


def explorer_entries() -> list[dict[str, str]]:
    """The explorers for the site's navigation."""
    return [{explorer.title: f"explore/{explorer.name}.md"} for explorer in EXPLORERS]


def explorers_of(*claims: str) -> list[Explorer]:
    """Those that belong to one of these claims."""
    return [explorer for explorer in EXPLORERS if set(claims) & set(explorer.claims)]


def _row(name: str, ledger: Ledger) -> dict[str, Any]:
    who, sentence = whose(ledger[name]["says"])
    own = {"id": name, "claim": name.partition(".")[0], "ours": who == "Ours", "sentence": sentence}
    return own | dict(ledger[name])


def _topics(ledger: Ledger) -> dict[str, list[dict[str, Any]]]:
    """Questions with their answers by what they are about, in order."""
    topics: dict[str, list[dict[str, Any]]] = {}
    for question in QUESTIONS:
        topics.setdefault(question.about, []).append(
            {
                "ask": question.ask,
                "answer": question.answer(ledger),
                "told": question.source.told,
                "claims": question.claims,
                "explorers": explorers_of(question.claims[0]),
            }
        )
    return topics


def _claim(script: Script, rows: list[dict[str, Any]], ledger: Ledger) -> str:
    figure = _figure(script)
    asked = [question for question in QUESTIONS if script.id in question.claims]
    return page(
        "claim.md",
        script=script,
        first=rows[0],
        rows=rows[1:],
        about=[" ".join(part.split()) for part in script.about.split("\n\n")],
        figure=f"../figures/{script.id}{figure.suffix}" if figure else None,
        table="sampler.md" if script.id == sampler.CLAIM else None,
        formula=FORMULAS.get(script.id),
        explorers=explorers_of(script.id),
        asked=[(question.ask, question.answer(ledger)) for question in asked],
        where=_where(script),
    )


def _figure(script: Script) -> Path | None:
    docs = ROOT / "docs"
    places = [docs / "figures" / f"{script.id}{suffix}" for suffix in (".svg", ".png")]
    places += [docs / FIGURES[script.id]] if script.id in FIGURES else []
    return next((path for path in places if path.exists()), None)


def _where(script: Script) -> str:
    return script.path.relative_to(ROOT).as_posix()
