"""The README keeps its word: its code runs and its generated tables are those that the code prints."""

import contextlib
import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

import grpo_jax as gj
from experiments.harness import ledger as ledgers
from experiments.harness.scripts import SCRIPTS
from grpo_jax import methods

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(name):
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.S)
    assert found, f"the README has no section {name}"
    return found[1].strip()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    names = {"dataclasses": dataclasses, "jnp": jnp, "gj": gj}
    with contextlib.chdir(tmp_path_factory.mktemp("readme")):
        for block in re.findall(r"```python\n(.*?)```", README, re.S):
            exec(compile(block, "README.md", "exec"), names)
        names["written"] = sorted(path.name for path in Path.cwd().iterdir())
    return names


def test_the_code_runs_in_order(ran):
    assert ran["data"].sizes["seed"] == 64
    assert ran["written"] == ["right.png", "right.svg"]


def test_the_method_table_is_the_code_s():
    assert section("methods") == methods.table().strip()


def test_both_commands_stand_as_ci_runs_them():
    assert 'pip install -c constraints.txt -e ".[test]" && .venv/bin/pytest' in README
    assert "pip install -c constraints.txt -e . && .venv/bin/python -m experiments" in README


def test_the_ledger_is_the_committed_one():
    ledger = ledgers.read_ledger(ROOT / "experiments" / "ledger.json")
    assert section("ledger") == ledgers.ledger_table(ledger, SCRIPTS).strip()
