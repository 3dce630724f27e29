"""What the repository holds of the site for those who do not build it: answers, and the ledger."""

from __future__ import annotations

from collections import Counter

from docs.generate.answers import Ledger
from docs.generate.questions import QUESTIONS
from docs.generate.records import ROOT
from experiments.harness.ledger import ledger_path, ledger_table, read_ledger, update_table
from experiments.harness.scripts import SCRIPTS, find_scripts
from experiments.harness.verdict import whose
from experiments.transfer import table as transfer

ASKED = (
    "My loss is 0. Is something broken?",
    "How much of my reference policy survives a KL weight (beta)?",
    "Which KL: k1, k2 or k3, in the loss or in the reward?",
    "Is GRPO RLHF with another estimator?",
    "Should I divide by the standard deviation (scale_rewards)?",
    "Should I average over successes only (MaxRL)?",
    "Do dead groups (all right or all wrong) hurt?",
    "Is a small length term in the reward harmless?",
    "Does the clip (or clip-higher) matter with one step on a batch?",
    "My answers get longer. Why?",
    "A token mean over what: answer, batch or prompt?",
    "Should I normalise several rewards apart (GDPO)?",
    "Do masked, truncated answers still count?",
    "top_p < 1 with importance sampling?",
    "My inference engine's probabilities differ from the trainer's: which correction?",
)
"""Questions of the site that the README answers."""


def answers(ledger: Ledger) -> str:
    """Question, answer and claims as a table."""
    asked = {question.ask: question for question in QUESTIONS}
    places = {name: script.path.relative_to(ROOT).as_posix() for name, script in find_scripts().items()}
    rows = ["| asked | answer | claim |", "|---|---|---|"]
    for ask in ASKED:
        question = asked[ask]
        claims = ", ".join(f"[{claim}]({places[claim]})" for claim in question.claims)
        cells = (ask, question.answer(ledger, shown=str))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + f" | {claims} |")
    return "\n".join(rows)


def survivors(cells: transfer.Cells) -> str:
    """How many sentences survive a network, and which of them fail, in one paragraph."""
    counts = transfer.counts(cells)
    same = Counter(
        row["policies"][transfer.CONTROL]["verdict"]
        for row in cells.values()
        if transfer.outcome(row) == "transfers"
    )
    held = ", ".join(f"{count} {verdict}" for verdict, count in same.most_common())
    lines = [
        "**What survives a network?** The same sentences, said of sequences, on a table (`tree`), an `mlp` "
        "and a small `transformer` from the same starts, and on an MLP with fewer parameters than the table "
        "(`narrow`): `python -m experiments --policy tree mlp transformer narrow` computes "
        "[`transfer.json`](experiments/transfer.json), and `--check` compares with it. Of "
        f"{len(cells)} sentences {counts['transfers']} have one verdict on all of them ({held}), "
        f"{counts['open']} are open on some policy at this number of starts, and {counts['fails']} have "
        "another verdict on some network than on a table:"
    ]
    for id in transfer.ordered(cells):
        if transfer.outcome(cells[id]) == "fails":
            verdicts = ", ".join(f"{name} {cell['verdict']}" for name, cell in cells[id]["policies"].items())
            lines.append(f"**{id}** {whose(cells[id]['says'])[1].rstrip('.')} ({verdicts}).")
    return " ".join(lines)


def write() -> None:
    """Bring both up to date with the committed ledger."""
    ledger = read_ledger(ledger_path(SCRIPTS, "quick"))
    update_table(ROOT / "README.md", "answers", answers(ledger))
    update_table(ROOT / "README.md", "transfer", survivors(transfer.read()["rows"]))
    update_table(ROOT / "docs" / "ledger.md", "ledger", ledger_table(ledger, SCRIPTS))
