"""Two processes of one job, each with two devices, share a sweep: to the bit, and though one is killed."""

import contextlib
import json
import os
import signal
import socket
import time

import pytest
import xarray as xr

import grpo_jax as gj
from grpo_jax.sweeps import storage
from tests.sharing import PARTS, assert_same, child, names


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


WORKER = """
    import contextlib, json, pathlib, sys, time
    import jax
    from grpo_jax.sweeps import layout, shares, storage
    from grpo_jax.cli.launch import joined
    from tests.sharing import swept

    out, cluster, stops = sys.argv[1:]
    layout.PART_RUNS, shares.LATE, shares.PATIENCE = 4, 1.0, 20.0
    written, write = [], storage.Store.write

    def telling(store, variant, part, result):
        write(store, variant, part, result)
        written.append((variant, part))
        if stops == str(jax.process_index()):
            print("stopped", flush=True)
            sys.stdin.read()

    storage.Store.write = telling
    with joined(pathlib.Path(out)) if cluster else contextlib.nullcontext():
        there = [jax.process_count(), jax.local_device_count(), jax.device_count()]
        try:
            data = swept(out, chunk_size=2 * there[1], devices=there[1])
            time.sleep(2 * jax.process_index())  # as one that has more to do with the dataset than process 0
            data.to_netcdf(f"{out}.{jax.process_index()}.nc", engine="h5netcdf")
        finally:
            print(json.dumps([there, written]), flush=True)
"""
"""One process of a job of SLURM, as far as the environment tells it. Compiled as users compile: without
optimisation two devices compute other last bits than one."""


@contextlib.contextmanager
def job(out, stops=""):
    """Two processes with two CPU devices each, on this machine."""
    cluster = {
        "SLURM_JOB_ID": str(port()),  # JAX derives its port from it
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_NUM_CPU_DEVICES": "2",
        "XLA_FLAGS": "",
    }
    with contextlib.ExitStack() as running:
        processes = []
        for i in range(2):
            own = {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
            process = child(WORKER, out, "cluster", stops, **cluster, **own)
            processes.append(running.enter_context(process))
            running.callback(process.kill)
        yield processes


@pytest.fixture(scope="module")
def by_itself(tmp_path_factory):
    """What one process with one device computes."""
    out = tmp_path_factory.mktemp("alone") / "x"
    with child(WORKER, out, "", "", JAX_NUM_CPU_DEVICES="1", XLA_FLAGS="") as process:
        said = process.communicate(timeout=300)[0]
    own = [[v, p] for v in range(2) for p in range(4)]
    assert json.loads(said.splitlines()[-1]) == [[1, 1, 1], own], said
    return gj.load(out)


@pytest.mark.slow
def test_two_processes_with_two_devices_each_make_the_sweep_of_one(tmp_path, by_itself):
    with job(tmp_path / "x") as processes:
        said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for i, text in enumerate(said):
        own = [[v, p] for v in range(2) for p in (i, i + 2)]
        assert json.loads(text.splitlines()[-1]) == [[2, 2, 4], own]
        with xr.open_dataset(tmp_path / f"x.{i}.nc", engine="h5netcdf") as found:
            assert_same(found, by_itself)
    assert_same(gj.load(tmp_path / "x"), by_itself)
    assert names(tmp_path / "x") == [storage.MANIFEST, storage.RESULT]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_outlives_another_that_is_killed_and_the_same_call_goes_on(tmp_path, by_itself, killed):
    """Process 0 is the one that JAX's processes meet at: without it JAX ends the other by itself."""
    out, other = tmp_path / "x", 1 - killed
    with job(out, stops=str(killed)) as processes:
        assert "stopped\n" in iter(processes[killed].stdout.readline, "")
        os.kill(processes[killed].pid, signal.SIGKILL)
        began = time.monotonic()
        said = processes[other].communicate(timeout=240)[0]
    code = processes[other].returncode
    print(f"process {other} ended with {code}, {time.monotonic() - began:.1f} s after {killed} was killed")
    assert code not in (0, None), said
    finished = {path.name: path.read_bytes() for path in out.glob("part-*.nc")}
    assert 0 < len(finished) < PARTS
    with job(out) as processes:
        said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert {name: (out / name).read_bytes() for name in finished} == finished
    written = [tuple(part) for text in said for part in json.loads(text.splitlines()[-1])[1]]
    assert len(written) == len(set(written)) == PARTS - len(finished)
    assert_same(gj.load(out), by_itself)
