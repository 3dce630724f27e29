"""Full disks, kills and two sweeps at once: finished parts stay and nothing half written is left."""

import errno
import inspect
import os
import resource
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
from grpo_jax.sweeps.storage import Store

MINE = {"seeds": "0 to 6", "chunk_size": 2, "chunks": 3, "record": ["reward", "finite"]}
OTHER = MINE | {"seeds": "7 to 13"}
PACKAGE = Path(storage.__file__).parents[1]


def values(part, size=3):
    """A part's diagnostics: no two parts alike."""
    draw = np.random.default_rng(part)
    return {
        "reward": draw.normal(size=(2, size)).astype(np.float32),
        "finite": draw.uniform(size=(2, size)) < 0.5,
        "table": draw.normal(size=(2, 4, 3, size)),
    }


def same(left, right):
    """Bit for bit, types and shapes included."""
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype
        and left[n].shape == right[n].shape
        and left[n].tobytes() == right[n].tobytes()
        for n in left
    )


def filled(folder, parts=3, manifest=MINE):
    """A folder with finished parts."""
    with Store(folder, manifest) as store:
        for part in range(parts):
            store.write(0, part, values(part))
    return folder


def part(folder, number=1):
    return folder / f"part-000-{number:06d}.nc"


def hidden(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def full(after):
    """A disk that takes ``after`` bytes more."""
    left = [after]

    def put(self, view):
        if len(view) > left[0]:
            if not left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            view = view[: left[0]]
        left[0] -= len(view)
        return self.fileno() and os.write(self.fileno(), view)

    return put


@pytest.mark.parametrize("after", [0, 1, 1000, 6000, 12000])
def test_a_full_disk_leaves_what_was_written(tmp_path, monkeypatch, after):
    filled(tmp_path)
    big = {"reward": np.random.default_rng(0).normal(size=(20, 100))}
    with Store(tmp_path, MINE) as store:
        store.finish(xr.Dataset({"reward": ("run", [1.0])}))
        with monkeypatch.context() as patch:
            patch.setattr(netcdf.Target, "put", full(after))
            with pytest.raises(
                OSError, match=r"finished parts stay \(3\), and the same call goes on"
            ) as caught:
                store.write(0, 3, big)
            assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(part(tmp_path, 3)))
            patch.setattr(netcdf.Target, "put", full(after))
            with pytest.raises(OSError, match=r"sweep\.nc"):
                store.finish(xr.Dataset({n: (("a", "b"), v) for n, v in big.items()}))
        assert hidden(tmp_path) == [storage.LOCK]
        assert not part(tmp_path, 3).exists()
        assert load(tmp_path).reward == 1
        store.write(0, 3, big)
        assert same(store.read(0, 3), big)
        assert same(store.read(0, 2), values(2))


def test_a_file_beyond_the_limit_of_its_size(tmp_path):
    """The system itself refuses to write here: HDF5 must not notice."""
    big = {"reward": np.random.default_rng(0).normal(size=(20, 10000))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(filled(tmp_path), MINE) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        try:
            with pytest.raises(OSError, match="finished parts stay"):
                store.write(0, 3, big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        store.write(0, 3, big)
        assert same(store.read(0, 3), big)


def test_a_full_manifest_disk_and_a_failing_sync_are_said(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(netcdf.Target, "put", full(10))
        with pytest.raises(OSError, match=r"manifest\.json"):
            Store(tmp_path / "new", MINE)
    assert list((tmp_path / "new").iterdir()) == []

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Store(filled(tmp_path), MINE) as store:
        monkeypatch.setattr(netcdf.os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error") as caught:
            store.write(0, 3, values(3))
    assert caught.value.errno == errno.EIO
    assert not part(tmp_path, 3).exists()


def test_arrays_on_disk_have_their_place_and_leave_no_file(tmp_path, monkeypatch):
    with Store(tmp_path, MINE) as store:
        array = store.array((3, 5, 1000), np.dtype(bool))
        assert not array.any()
        array[1] = True
        store.release(array)
        assert array.sum() == 5000
        assert not array[0].any()
        assert store.array((0, 5), np.dtype("f4")).shape == (0, 5)
        assert hidden(tmp_path) == [storage.LOCK]

        def fail(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(storage.os, "posix_fallocate", fail)
        with pytest.raises(OSError, match="No space left on device; finished parts stay"):
            store.array((10,), np.dtype("f4"))


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    """In a process of its own: HDF5 left to itself ends it."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        script = f"""
            folder = {str(tmp_path)!r}
            small, big = np.arange(12000.0).reshape(3, 4000), np.ones((100, 4000))
            with Store(folder, {{"a": 1}}) as store:
                store.write(0, 0, {{"x": small}})
                for act in (
                    lambda: store.write(0, 1, {{"x": big}}),
                    lambda: store.finish(xr.Dataset({{"x": (("a", "b"), big)}})),
                    lambda: store.array((1000, 1000), np.dtype(float)),
                ):
                    try:
                        act()
                    except OSError as error:
                        print(error.errno, error)
                assert (store.read(0, 0)["x"] == small).all()
                store.finish(xr.Dataset({{"x": (("a", "b"), small)}}))
            assert (storage.load(folder).x == small).all()
            print(sorted(os.listdir(folder)))
        """
        with child(script) as other:
            lines = other.communicate(timeout=60)[0].splitlines()
        assert other.returncode == 0, lines
        assert len([line for line in lines if line.startswith("28 [Errno 28] No space left")]) == 3
        assert lines[-1] == "['manifest.json', 'part-000-000000.nc', 'sweep.nc']"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# Other processes


def child(script):
    """A process that knows the storage alone: the whole package takes seconds to import."""
    start = f"""
        import os, pathlib, signal, sys, types
        for name, path in (("grpo_jax", {str(PACKAGE)!r}), ("grpo_jax.sweeps", {str(PACKAGE / "sweeps")!r})):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [path]
        import numpy as np, xarray as xr
        from grpo_jax.sweeps import netcdf, storage
        from grpo_jax.sweeps.storage import Store
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_second_sweep_is_refused_until_the_first_has_ended(tmp_path):
    with Store(tmp_path, MINE):
        for manifest in (MINE, OTHER):
            with pytest.raises(BlockingIOError, match=f"in use by another sweep .process {os.getpid()} on "):
                Store(tmp_path, manifest)
    script = f"""
        store = Store({str(tmp_path)!r}, {MINE!r})
        print("held", flush=True)
        sys.stdin.read()
    """
    with child(script) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"process {other.pid} on .*wait .* or give another folder"):
            Store(tmp_path, MINE)
        other.kill()  # the lock's file stays
    assert hidden(tmp_path) == [storage.LOCK]
    with Store(tmp_path, MINE):
        pass
    assert hidden(tmp_path) == []


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    """Between opening the file and locking it the holder before may remove it, and a third make another."""
    taken, take = [], storage.Lock._take

    def late(lock):
        if not taken:
            lock.path.unlink()
        taken.append(take(lock))
        return taken[-1]

    monkeypatch.setattr(storage.Lock, "_take", late)
    with Store(tmp_path, MINE):
        assert taken == [True, True]
        with pytest.raises(BlockingIOError, match="in use"):
            Store(tmp_path, MINE)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    stale = tmp_path / ".part-000-000000.nc.1"
    stale.touch()
    monkeypatch.setattr("grpo_jax.sweeps.lock.fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="has no locks.*second sweep"), Store(tmp_path, MINE) as store:
        store.write(0, 0, values(0))
    assert stale.exists()  # it may be another's, at work


def test_half_written_files_of_a_killed_sweep_are_removed(tmp_path):
    filled(tmp_path)
    stale = [".part-000-000001.nc.123", ".part-123-1234567.nc.1", ".manifest.json.9", ".sweep.nc.4194304"]
    kept = [
        ".notes",
        ".part-000-000001.nc",
        ".sweep.nc.txt",
        "part-000-000001.nc.1",
        ".x.part-000-000001.nc.1",
    ]
    for name in stale + kept:
        (tmp_path / name).write_text("x")
    with Store(tmp_path, MINE):
        pass
    assert not [n for n in stale if (tmp_path / n).exists()]
    assert [n for n in kept if (tmp_path / n).exists()] == kept


KILLS = {
    "before the manifest": ("rename", ".manifest.json", "before", 0),
    "after the manifest": ("rename", ".manifest.json", "after", 0),
    "in a part": ("put", ".part-000-000001", "before", 1),
    "before a part is renamed": ("rename", ".part-000-000001", "before", 1),
    "after a part is renamed": ("rename", ".part-000-000001", "after", 2),
    "in the last part": ("put", ".part-000-000003", "before", 3),
    "in the result": ("put", ".sweep.nc", "before", 4),
    "before the result is renamed": ("rename", ".sweep.nc", "before", 4),
    "after the result is renamed": ("rename", ".sweep.nc", "after", 4),
}
"""Where: writing or renaming which file, before that is done or after; how many parts are finished then."""


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


def kill(kind, start, when, _):
    """Have this process killed at a point."""
    replace = Path.replace

    def renaming(path, target):
        if path.name.startswith(start):
            if when == "after":
                replace(path, target)
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    def put(self, view):
        if Path(self.name).name.startswith(start) and self.tell() > 3000:
            os.write(self.fileno(), view[: len(view) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return os.write(self.fileno(), view)

    if kind == "put":
        netcdf.Target.put = put
    else:
        Path.replace = renaming


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
    for name, (_, _, when, parts) in KILLS.items():
        folder = tmp_path / name
        assert len([n for n in hidden(folder) if n != storage.LOCK]) == (when == "before")
        assert len(list(folder.glob("part-*.nc"))) == parts
        assert simulate(folder, streamed=True) == list(range(parts, 4))
        assert hidden(folder) == []
        xr.testing.assert_identical(load(folder), whole)


def swept(out):
    """Seven runs in parts of two."""
    config = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=np.arange(6.0).reshape(2, 3) / 6),
        loop=gj.Loop(group_size=4, inner_steps=2),
    )
    layout.PART_RUNS = 2
    short = {"iterations": 6, "record_every": 3, "progress": False}
    return gj.sweep(config, seeds=7, chunk_size=2, devices=1, out=out, **short)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """The same through the public call, each kill in a process that compiles for itself."""
    script = "import os, signal\nfrom pathlib import Path\nimport numpy as np\nimport grpo_jax as gj\n"
    script += "from grpo_jax.sweeps import layout, netcdf\n"
    script += "".join(inspect.getsource(f) for f in (swept, kill))
    script += textwrap.dedent(f"""
        for name, point in {KILLS!r}.items():
            if (child := os.fork()) == 0:
                kill(*point)
                swept({str(tmp_path)!r} + "/" + name)
                os._exit(0)
            print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["ended -9"] * len(KILLS), done.stderr
    monkeypatch.setattr(layout, "PART_RUNS", 2)
    whole, write, written = swept(None), Store.write, []
    monkeypatch.setattr(Store, "write", lambda s, v, p, r: (written.append(p), write(s, v, p, r)))
    for name, (*_, parts) in KILLS.items():
        written.clear()
        for found in (swept(tmp_path / name), load(tmp_path / name)):
            for variable in whole.data_vars:
                assert found[variable].values.tobytes() == whole[variable].values.tobytes(), variable
        assert written == list(range(parts, 4))
        assert hidden(tmp_path / name) == []
