"""The tests notice: faults planted one at a time, each of which a fast test must catch."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults import FAULTS, Fault

ROOT = Path(__file__).parent.parent


def text_of(fault: Fault) -> str:
    return (ROOT / "grpo_jax" / fault.file).read_text(encoding="utf-8")


def test_there_are_faults_of_every_kind():
    assert len(FAULTS) >= 40
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_what_a_fault_replaces_stands_there_once(fault):
    assert text_of(fault).count(fault.old) == 1
    for name in fault.tests.split():
        assert (ROOT / "tests" / f"{name}.py").exists()


def planted(fault: Fault, folder: Path) -> str | None:
    """The test that fails, or whose fixture does, where the fault is planted; None where all pass."""
    for held in ROOT.iterdir():
        if held.name in ("tests", "experiments", "benchmarks", "README.md", "pyproject.toml"):
            (folder / held.name).symlink_to(held)
    shutil.copytree(ROOT / "grpo_jax", folder / "grpo_jax", ignore=shutil.ignore_patterns("__pycache__"))
    changed = folder / "grpo_jax" / fault.file
    changed.write_text(text_of(fault).replace(fault.old, fault.new), encoding="utf-8")
    files = [f"tests/{name}.py" for name in fault.tests.split()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        *files,
    ]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    words = [line.split(" ") for line in done.stdout.splitlines()]
    failed = [said[1] for said in words if said[0] in ("FAILED", "ERROR") and "::" in said[1]]
    if not failed:  # a file that cannot be collected would catch every fault
        raise RuntimeError(f"{fault.what}: the tests did not run\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[0]


@pytest.mark.slow
def test_without_a_fault_every_named_file_passes(tmp_path):
    """A file that fails anyway would catch everything."""
    names = sorted({name for fault in FAULTS for name in fault.tests.split()})

    def one(name: str) -> str | None:
        (tmp_path / name).mkdir()
        return planted(Fault(f"nothing ({name})", FAULTS[0].file, "", "", name), tmp_path / name)

    with ThreadPoolExecutor(2) as pool:
        assert not [test for test in pool.map(one, names) if test]


@pytest.mark.slow
def test_every_planted_fault_is_caught(tmp_path, capsys):
    def one(place: tuple[int, Fault]) -> str | None:
        folder = tmp_path / str(place[0])
        folder.mkdir()
        return planted(place[1], folder)

    with ThreadPoolExecutor(2) as pool:
        caught = list(pool.map(one, enumerate(FAULTS)))
    with capsys.disabled():
        print()
        for fault, test in zip(FAULTS, caught, strict=True):
            print(f"{'caught' if test else 'MISSED'}  {fault.file}: {fault.what}  [{test or fault.tests}]")
        print(f"{sum(map(bool, caught))} of {len(FAULTS)} planted faults are caught")
    assert all(caught)
