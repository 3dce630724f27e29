"""Kills at any moment: what was finished stays and is not computed again; the rest is as if undisturbed."""

import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from grpo_jax.sweeps import layout, load, netcdf, storage
from grpo_jax.sweeps.program import Program
from grpo_jax.sweeps.storage import Store
from tests.folders import MINE, child, environment, hidden, values

KILLS = {
    "in the manifest": ("put", ".manifest.json", 0, 0, 1),
    "before the manifest is renamed": ("rename", ".manifest.json", "before", 0, 1),
    "after the manifest is renamed": ("rename", ".manifest.json", "after", 0, 0),
    "before a part": ("open", ".part-000-000001", "", 1, 0),
    "in a part": ("put", ".part-000-000001", 3000, 1, 1),
    "before a part is renamed": ("rename", ".part-000-000001", "before", 1, 1),
    "after a part is renamed": ("rename", ".part-000-000001", "after", 2, 0),
    "in the last part": ("put", ".part-000-000003", 3000, 3, 1),
    "before the result": ("open", ".sweep.nc", "", 4, 0),
    "in the result": ("put", ".sweep.nc", 3000, 4, 1),
    "before the result is renamed": ("rename", ".sweep.nc", "before", 4, 1),
    "after the result is renamed": ("rename", ".sweep.nc", "after", 4, 0),
}
"""Opening, writing or renaming which file, and when: before that is done or after, or so many bytes into it.
Then how many parts are finished, and how many files half written."""


def kill(kind, start, when, *_):
    """Have this process killed at a point."""
    replace, opened = Path.replace, netcdf.Target.__init__

    def renaming(path, target):
        if path.name.startswith(start):
            if when == "after":
                replace(path, target)
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    def opening(self, path, mode):
        if path.name.startswith(start):
            os.kill(os.getpid(), signal.SIGKILL)
        opened(self, path, mode)

    def put(self, view):
        if Path(self.name).name.startswith(start) and self.tell() >= when:
            os.write(self.fileno(), view[: len(view) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return os.write(self.fileno(), view)

    if kind == "put":
        netcdf.Target.put = put
    elif kind == "open":
        netcdf.Target.__init__ = opening
    else:
        Path.replace = renaming


def simulate(folder, streamed):
    """What the runner does with parts; the numbers of those that had to be computed."""
    computed = []
    with Store(folder, MINE) as store:
        whole = store.array((2, 12), np.dtype("f4")) if streamed else np.empty((2, 12), np.float32)
        for number in range(4):
            found = store.read(0, number)
            if found is None:
                computed.append(number)
                found = values(number)
                store.write(0, number, found)
            whole[:, 3 * number : 3 * number + 3] = found["reward"]
        store.finish(xr.Dataset({"reward": (("record", "run"), whole)}))
    return computed


def test_a_kill_at_any_point_loses_only_the_part_in_flight(tmp_path):
    """One process forks for each point; then each folder goes on to the results of a sweep left alone."""
    script = f"MINE = {MINE!r}\nPath = pathlib.Path\n"
    script += "".join(inspect.getsource(f) for f in (values, simulate, kill))
    script += textwrap.dedent(f"""
        for i, (name, point) in enumerate({KILLS!r}.items()):
            if (child := os.fork()) == 0:
                kill(*point)
                simulate({str(tmp_path)!r} + "/" + name, streamed=bool(i % 2))
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    with child(script) as other:
        assert other.communicate(timeout=120)[0].split() == ["-9"] * len(KILLS)
    assert simulate(tmp_path / "whole", streamed=False) == [0, 1, 2, 3]
    whole = load(tmp_path / "whole")
    for name, (*_, parts, half) in KILLS.items():
        folder = tmp_path / name
        assert len([n for n in hidden(folder) if n != storage.LOCK]) == half, name
        assert len(list(folder.glob("part-*.nc"))) == parts
        assert simulate(folder, streamed=True) == list(range(parts, 4))
        assert hidden(folder) == []
        xr.testing.assert_identical(load(folder), whole)


# The same through the public call

RANDOM, PARTS = 30, 40
"""Kills at random moments, each of a sweep of so many parts."""


def swept(out, parts):
    """Two runs a part, but for the last, which has one."""
    config = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=np.arange(6.0).reshape(2, 3) / 6),
        loop=gj.Loop(group_size=4, inner_steps=2),
    )
    layout.PART_RUNS = 2
    short = {"iterations": 6, "record_every": 3, "record": ["reward", "entropy"], "progress": False}
    return gj.sweep(config, seeds=2 * parts - 1, chunk_size=2, devices=1, out=out, **short)


@contextlib.contextmanager
def nursery():
    """Calls to a process that has imported everything and forks for each sweep that is to be killed.

    A call takes a folder, the number of parts, a point and a delay in seconds (None for none of these), and
    gives the exit status and the seconds until it was there.
    """
    script = "import json, os, signal, sys, time\nfrom pathlib import Path\nimport numpy as np\n"
    script += "import grpo_jax as gj\nfrom grpo_jax.sweeps import layout, netcdf\n"
    script += "".join(inspect.getsource(f) for f in (swept, kill))
    script += textwrap.dedent("""
        for line in sys.stdin:
            folder, parts, point, delay = json.loads(line)
            began = time.perf_counter()
            if (child := os.fork()) == 0:
                if point:
                    kill(*point)
                swept(folder, parts)
                os._exit(0)
            if delay is not None:
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(json.dumps([status, time.perf_counter() - began]), flush=True)
    """)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], env=environment(), **pipes) as other:

        def call(folder, parts, point=None, delay=None):
            other.stdin.write(json.dumps([str(folder), parts, point, delay]) + "\n")
            other.stdin.flush()
            return json.loads(other.stdout.readline())

        yield call
        other.stdin.close()


def goes_on(folder, parts, whole, monkeypatch):
    """Call the sweep again; how many parts had been finished. Each of the others is computed once."""
    before = {p.name: p.read_bytes() for p in folder.glob("part-*.nc")}
    names = [f"part-000-{number:06d}.nc" for number in range(parts)]
    written, calls, write, run = [], [], Store.write, Program.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", lambda s, v, p, r: (written.append(names[p]), write(s, v, p, r)))
        patch.setattr(Program, "__call__", lambda s, *given: (calls.append(1), run(s, *given))[1])
        found = swept(folder, parts)
    assert written == [name for name in names if name not in before]
    assert len(calls) == len(written)
    assert all((folder / name).read_bytes() == held for name, held in before.items())
    assert sorted(p.name for p in folder.iterdir()) == sorted([storage.MANIFEST, *names, storage.RESULT])
    for data in (found, load(folder)):
        assert data.sizes == whole.sizes
        for variable in whole.variables:
            assert data[variable].values.tobytes() == whole[variable].values.tobytes(), variable
    return len(before)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_bit_for_bit(tmp_path, monkeypatch, record_property):
    """At every point, and at moments spread at random over all of a sweep: each in a process of its own."""
    monkeypatch.setattr(layout, "PART_RUNS", 2)
    few, many = swept(None, 4), swept(None, PARTS)
    draw, finished = np.random.default_rng(0), []
    with nursery() as call:
        for name, point in KILLS.items():
            assert call(tmp_path / name, 4, point)[0] == -9, name
        assert [call(tmp_path / name, PARTS)[0] for name in ("first", "again")] == [0, 0]
        seconds = call(tmp_path / "timed", PARTS)[1]
        for i in range(RANDOM):
            delay, status = seconds * (i + draw.uniform()) / RANDOM, 0
            while status == 0:  # it may have been quicker than the one that was timed
                folder = tmp_path / f"{i} after {delay}"
                status, _ = call(folder, PARTS, delay=delay)
                delay *= 0.95
            assert status == -9
            folder.mkdir(exist_ok=True)  # killed before it was made
            finished.append(goes_on(folder, PARTS, many, monkeypatch))
    for name, (*_, parts, _) in KILLS.items():
        assert goes_on(tmp_path / name, 4, few, monkeypatch) == parts
    between = [count for count in finished if 0 < count < PARTS]
    assert len(between) >= RANDOM // 3
    record_property(
        "found",
        f"{RANDOM} kills at random moments of {seconds:.2f} s, with {sorted(finished)} of {PARTS} parts "
        f"finished, and {len(KILLS)} at named points: equal to the bit, no finished part computed again",
    )
