"""Full disks and two sweeps at once: finished parts stay and nothing half written is left."""

import errno
import os
import resource
import subprocess

import numpy as np
import pytest
import xarray as xr

from grpo_jax.sweeps import load, netcdf, storage
from grpo_jax.sweeps.storage import Store
from tests.folders import MINE, OTHER, child, filled, hidden, part, same, values


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
