"""The README keeps its word: its code runs and its generated tables are those that the code prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax

from experiments.harness import ledger as ledgers
from experiments.harness.scripts import SCRIPTS
from grpo_jax import methods
from grpo_jax.runtime import CACHE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(name):
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.S)
    assert found, f"the README has no section {name}"
    return found[1].strip()


def test_the_code_runs_in_order(tmp_path):
    """As a script, compiled as users compile."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    script = "\n".join([*blocks, "print(data.sizes['seed'], curves.sizes['iteration'])"])
    here = {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), CACHE: str(jax.config.jax_compilation_cache_dir)}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | here, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "64 4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["right.png", "right.svg"]


def test_the_method_table_is_the_code_s():
    assert section("methods") == methods.table().strip()


def test_both_commands_stand_as_ci_runs_them():
    assert 'pip install -c constraints.txt -e ".[test]" && .venv/bin/pytest' in README
    assert "pip install -c constraints.txt -e . && .venv/bin/python -m experiments" in README


def test_the_ledger_is_the_committed_one():
    ledger = ledgers.read_ledger(ROOT / "experiments" / "ledger.json")
    assert section("ledger") == ledgers.ledger_table(ledger, SCRIPTS).strip()
