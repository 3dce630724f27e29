"""The commands in processes of their own: Ctrl-C, SIGTERM, full and read-only disks.

All of it is slow: every call is a process that imports everything.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr

import grpo_jax as gj
from tests.folders import environment
from tests.made_up_claims import ROOT, write_claim

pytestmark = pytest.mark.slow

PARTS = 12
SWEEP = ("sweep", "--actions", "3", "--contexts", "1", "--seeds", str(2 * PARTS), "--iterations", "4",
         "--record-every", "2", "--sweep", "learning_rate=0.1")  # fmt: skip
COMMAND = """
import signal, sys, time
from grpo_jax.cli import main
from grpo_jax.sweeps import layout
from grpo_jax.sweeps.storage import Store
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
layout.PART_RUNS, write = 2, Store.write
"""
"""``python -m grpo_jax`` with parts of two runs."""
SLOWLY = """
def slowly(store, *part):
    time.sleep(0.3)
    write(store, *part)
Store.write = slowly
"""
FILLING = """
def filling(store, variant, part, result):
    write(store, variant, part, result)
    if part == 2:
        with (store.folder.parent / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(512)):
                    pass
            except OSError:
                pass
Store.write = filling
"""


def started(*arguments):
    """A process, in a group of its own, as a shell starts one."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(words, cwd=ROOT, env=environment(), start_new_session=True, **pipes)


def command(*words, before=""):
    return started("-c", f"{COMMAND}{before}\nmain()", *words)


def ended(process):
    """Exit status, standard output and standard error."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def parts(folder):
    return sorted(folder.glob("part-*.nc"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same sweep left alone."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    status, _, said = ended(command(*SWEEP, "--out", folder))
    assert status == 0, said
    assert len(parts(folder)) == PARTS
    return gj.load(folder)


def goes_on(folder, whole):
    """The same command again: it reads back what was finished, and ends with the same dataset."""
    held = len(parts(folder))
    status, _, said = ended(command(*SWEEP, "--out", folder))
    assert status == 0, said
    assert f"{2 * held} runs read back" in said
    xr.testing.assert_equal(gj.load(folder), whole)
    return held


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_stops_after_the_part_in_flight(number, tmp_path, whole, record_property):
    folder = tmp_path / "out"
    running = command(*SWEEP, "--out", folder, before=SLOWLY)
    until(lambda: len(parts(folder)) > 2)
    asked = time.monotonic()
    running.send_signal(number)
    status, out, said = ended(running)
    seconds = time.monotonic() - asked
    assert status == 128 + number
    assert (out, said.count("Traceback")) == ("", 0)
    assert "stopping when this part is done; once more stops at once" in said
    finished = len(parts(folder))
    assert f"stopped after part {finished} of {PARTS}; the same call with out='{folder}' goes on" in said
    assert 3 <= goes_on(folder, whole) == finished < PARTS
    name = signal.Signals(number).name
    record_property(
        "found", f"{name}: status {status} within {seconds:.1f} s, {finished} of {PARTS} parts kept"
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_and_one_that_cannot_be_written(small_disk, whole, record_property):
    folder = small_disk / "out"
    status, _, said = ended(command(*SWEEP, "--out", folder, before=FILLING))
    assert status == 2
    told = said.splitlines()[-1]
    assert told.startswith("error: ")
    assert "No space left on device; finished parts stay (3), and the same" in told
    assert "Traceback" not in said
    assert len(parts(folder)) == 3
    status, _, said = ended(command(*SWEEP, "--out", folder))  # no room is made
    assert status == 2
    assert "No space left" in said.splitlines()[-1] or "GiB are free" in said.splitlines()[-1]
    (small_disk / "ballast").unlink()
    assert goes_on(folder, whole) == 3
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for out in (folder, small_disk / "new"):
        status, _, said = ended(command(*SWEEP, "--out", out))
        assert status == 2
        assert "out cannot be written (Read-only file system); give another folder" in said.splitlines()[-1]
    assert ended(command("show", folder))[0] == 0
    record_property("found", f"a disk of 2 MiB filled up at part 4 of {PARTS}: {told}")


# python -m experiments

CLAIMS = ("A1", "A2", "A3", "A4")


@pytest.fixture
def experiments(tmp_path):
    """Starts the command on claims that take about two seconds each, one after the other."""
    scripts = tmp_path / "experiments" / "claims"
    scripts.mkdir(parents=True)
    for claim in CLAIMS:
        write_claim(scripts, claim, check="import time, tqdm; list(tqdm.tqdm([0])); time.sleep(2)")
    out = tmp_path / "out"
    script = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from experiments.__main__ import enter\nsys.exit(enter())"
    )
    return lambda: started("-c", script, *CLAIMS, "--scripts", scripts, "--out", out, "--jobs", "1"), out


def records(out):
    return [claim for claim in CLAIMS if (out / claim / "record.json").exists()]


def left_over(out):
    return [path.name for path in (*out.glob("*/crash.txt"), *out.glob("*/.*"))]


def gone(process):
    """Whether no process of its group is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        return False
    return True


@pytest.mark.parametrize(
    ("number", "all_of_them"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)]
)
def test_experiments_stop_after_the_claims_that_run(number, all_of_them, experiments, record_property):
    """Whether a terminal tells every process of it or a scheduler the first one alone."""
    start, out = experiments
    running = start()
    until(lambda: len(records(out)) == 1 and (out / "A2").exists())
    time.sleep(0.5)  # the second one is on its way
    (os.killpg if all_of_them else os.kill)(running.pid, number)
    status, said, errors = ended(running)
    assert status == 128 + number
    assert "Traceback" not in said + errors
    assert "stopped after 2 of 4 claims; what has finished is kept, and the same command goes on" in errors
    assert records(out) == ["A1", "A2"]
    assert left_over(out) == []
    kept = {claim: (out / claim / "record.json").read_bytes() for claim in records(out)}
    status, said, _ = ended(start())
    assert status == 0
    assert "kept (--again runs them anew): A1, A2." in said
    assert records(out) == list(CLAIMS)
    assert all((out / claim / "record.json").read_bytes() == held for claim, held in kept.items())
    record_property("found", f"{signal.Signals(number).name}: status {128 + number}, 2 of 4 claims kept")


def test_a_second_signal_ends_the_claims_at_once(experiments):
    start, out = experiments
    running = start()
    until(lambda: len(records(out)) == 1 and (out / "A2").exists())
    for _ in range(2):
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
    status, _, errors = ended(running)
    assert status == 130
    assert errors.splitlines()[-1].startswith("Interrupted; what has finished is kept")  # nothing leaked
    assert records(out) == ["A1"]
    assert left_over(out) == []
    until(lambda: gone(running))


def test_claims_do_not_outlive_the_command(experiments):
    start, out = experiments
    running = start()
    until(lambda: (out / "A1").exists())
    time.sleep(1)
    running.kill()
    assert ended(running)[0] == -signal.SIGKILL
    until(lambda: gone(running), seconds=20)
    assert records(out) == []
    assert Path(out / "A1").exists()
