"""CONTRIBUTING.md keeps its word: its code runs, its tests pass, its claim is one, its files are there."""

import re
from pathlib import Path

import jax
import pytest

from experiments.harness.scripts import read_script
from experiments.harness.verdict import Claim
from grpo_jax import plotting

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.fixture(scope="module")
def names():
    made = {"__name__": "contributing"}
    for block in BLOCKS:
        exec(compile(block, "CONTRIBUTING.md", "exec"), made)
    return made


def cases(test):
    """The arguments of every call that a test stands for."""
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    return [dict(zip(*mark.args[:1], row, strict=True)) for mark in marks for row in mark.args[1]] or [{}]


@pytest.mark.parametrize("name", re.findall(r"^def (test_\w+)", TEXT, re.M))
def test_its_tests_pass(names, name):
    for arguments in cases(names[name]):
        names[name](**arguments)


def test_its_claim_is_one_and_holds(names, tmp_path):
    (source,) = (block for block in BLOCKS if "def simulate" in block)
    path = tmp_path / "x01_scale.py"
    path.write_text(source, encoding="utf-8")
    script = read_script(path)
    assert script.id == "X1"
    with jax.enable_x64(script.precision == "float64"):
        data = names["simulate"](1, names["SIZES"]["smoke"])
    claim = Claim(script.id, script.says)
    names["check"](data, claim)
    assert claim.verdict().verdict == "reproduced"
    figure = plotting.figure()
    names["draw"](figure, data)
    assert figure.axes


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", TEXT))
def test_its_links_resolve(link):
    assert (ROOT / link).exists()


def test_its_commands_are_the_package_s():
    extras = re.search(r'-e "\.\[(.*?)\]"', TEXT)[1].split(",")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in pyproject for extra in extras)
    style = re.search(r"```sh\n(ruff check.*?)\n```", TEXT, re.S)[1]
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f".venv/bin/{command}" in run for command in style.split(" && "))
