"""The README keeps its word: its code runs and its generated tables are those that the code prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from docs.generate import readme
from experiments.harness import ledger as ledgers
from experiments.harness.scripts import SCRIPTS
from experiments.transfer import table as transfer
from grpo_jax.runtime import CACHE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOUR = (ROOT / "docs" / "site" / "guide.md").read_text(encoding="utf-8")
LEDGER = ledgers.read_ledger(ROOT / "experiments" / "ledger.json")


def section(name, text=README):
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.S)
    assert found, f"there is no section {name}"
    return found[1].strip()


@pytest.mark.slow
def test_the_code_runs_in_order(tmp_path):
    """The README's and the tour's as one script, compiled as users compile."""
    blocks = re.findall(r"```python\n(.*?)```", README + TOUR, re.S)
    script = "\n".join([*blocks, "print(data.sizes['seed'], curves.sizes['iteration'])"])
    here = {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), CACHE: str(jax.config.jax_compilation_cache_dir)}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | here, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "64 4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["right.png", "right.svg"]


def test_it_stays_short():
    """Tables, a tour and the ledger are on the site."""
    assert len(README.splitlines()) <= 180


def test_the_answers_are_those_of_the_committed_ledger():
    """`python -m docs.generate` writes them."""
    assert section("answers") == readme.answers(LEDGER)


def test_what_fails_to_transfer_is_that_of_the_committed_table():
    """`python -m docs.generate` writes it."""
    assert section("transfer") == readme.survivors(transfer.read()["rows"])


def test_both_commands_stand_as_ci_runs_them():
    assert 'pip install -c constraints.txt -e ".[test]" && .venv/bin/pytest' in README
    assert "pip install -c constraints.txt -e . && .venv/bin/python -m experiments" in README


def test_the_ledger_is_the_committed_one():
    page = (ROOT / "docs" / "ledger.md").read_text(encoding="utf-8")
    assert section("ledger", page) == ledgers.ledger_table(LEDGER, SCRIPTS).strip()


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
