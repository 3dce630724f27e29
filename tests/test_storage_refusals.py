"""Files made to deceive and folders that cannot be: refused with a sentence, and nothing else happens."""

import errno
import json
import os
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from grpo_jax.sweeps import load, netcdf, storage
from grpo_jax.sweeps.storage import Store, held_layout

MINE = {"seeds": "0 to 6", "chunk_size": 2, "chunks": 3}


def filled(folder):
    """A folder with three finished parts."""
    with Store(folder, MINE) as store:
        for number in range(3):
            store.write(0, number, {"reward": np.full((2, 3), number)})
    return folder


def sealed(path):
    """Give a file that was tampered with a checksum that is right."""
    data = path.read_bytes()
    with path.open("rb") as file:
        path.write_bytes(data + netcdf.MARK + netcdf._digest(file, len(data)) + b"\n")


def honest(file):
    file["reward"] = np.ones(10)


def huge_chunks(file):
    file.create_dataset("reward", (2**40, 2**20), "f8", chunks=(1, 2**20))


def huge(file):
    h5py.h5d.create(file.id, b"reward", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((2**50,)))


def link(file):
    file["reward"] = h5py.ExternalLink("precious.nc", "secret")


def external(file):
    file.create_dataset("reward", (10,), "i1", external=[("precious.nc", 0, 10)])


def virtual(file):
    layout = h5py.VirtualLayout((10,), "f8")
    layout[:] = h5py.VirtualSource("precious.nc", "secret", (10,))
    file.create_virtual_dataset("reward", layout)


def compressed(file):
    file.create_dataset("reward", data=np.zeros(10**6), compression="gzip")


def group(file):
    file.create_group("reward/reward")


def compound(file):
    file["reward"] = np.zeros(3, "f4,V16")


@pytest.mark.parametrize(
    "make", [honest, huge_chunks, huge, link, external, virtual, compressed, group, compound]
)
def test_files_made_to_deceive_are_refused(tmp_path, monkeypatch, make):
    """Their checksums, numbers and labels are right; what is honest is read."""
    monkeypatch.chdir(filled(tmp_path))
    with h5py.File("precious.nc", "w") as file:
        file["secret"] = np.ones(10)
        file["secret"].make_scale("secret")
    for name in ("part-000-000001.nc", storage.RESULT):
        path = tmp_path / name
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            make(file)
            file.attrs.update(manifest=json.dumps(MINE), variant=0, part=1)
            if make not in (link, group):
                for axis, size in enumerate(file["reward"].shape):
                    scale = file.create_dataset(f"axis{axis}", (size,), "f4")
                    scale.make_scale(f"This is a netCDF dimension but not a netCDF variable.{size:10d}")
                    file["reward"].dims[axis].attach_scale(scale)
        sealed(path)
    with Store(tmp_path, MINE) as store:
        if make is honest:
            assert store.read(0, 1)["reward"].sum() == load(tmp_path).reward.sum() == 10
            return
        with pytest.raises(ValueError, match=r"sweep\.nc (holds|claims)"):
            load(tmp_path)
        with pytest.warns(UserWarning, match=r"part-000-000001\.nc (holds|claims)"):
            assert store.read(0, 1) is None


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_no_part(tmp_path, kind):
    path = filled(tmp_path) / "part-000-000001.nc"
    path.unlink()
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("nowhere")}[
        kind
    ]()
    with Store(tmp_path, MINE) as store:
        with pytest.warns(UserWarning, match="is not a file"):
            assert store.read(0, 1) is None
        store.write(0, 1, {"reward": np.ones(3)})
        assert store.read(0, 1)["reward"].sum() == 3


def test_a_planted_link_leads_nowhere(tmp_path):
    target = tmp_path / "precious"
    target.write_text("kept")
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / storage.LOCK).symlink_to(target)
    with pytest.raises(OSError, match="lock"):
        Store(folder, MINE)
    (folder / storage.LOCK).unlink()
    (folder / f".part-000-000000.nc.{os.getpid()}").symlink_to(target)
    (folder / storage.RESULT).symlink_to(target)
    (folder / storage.MANIFEST).symlink_to(tmp_path / "nowhere")
    (folder / storage.RESULT).unlink()
    filled(folder)
    assert target.read_text() == "kept"


# Folders


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert storage.prepare_folder("~/runs/x") == tmp_path / "runs" / "x"
    assert (tmp_path / "runs" / "x").is_dir()
    assert storage.prepare_folder("runs/x") == tmp_path / "runs" / "x"
    filled("~/runs/x")
    assert held_layout(tmp_path / "runs" / "x") == (2, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("out", "error", "match"),
    [
        ("file", NotADirectoryError, "file is a file"),
        ("file/below/it", NotADirectoryError, "file is a file"),
        ("", ValueError, "path of a folder"),
        ("a\0b", ValueError, "path of a folder"),
        ("~nobody-of-this-name/x", ValueError, "home"),
        (b"bytes", TypeError, "path of a folder"),
        (3, TypeError, "path of a folder"),
        ("x" * 300, OSError, "out cannot be written.*another folder"),
    ],
)
def test_a_folder_that_cannot_be_is_refused(tmp_path, monkeypatch, out, error, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(error, match=match):
        storage.prepare_folder(out)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_refused(tmp_path, monkeypatch, code):
    def refuse(**_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=rf"out cannot be written \({os.strerror(code)}\)") as caught:
        storage.prepare_folder(tmp_path)
    assert caught.value.errno == code
    assert caught.value.filename == str(tmp_path)


def test_too_little_space_is_said_beforehand(tmp_path, monkeypatch):
    filled(tmp_path)
    held = sum(p.stat().st_size for p in tmp_path.glob("part-*.nc"))
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    storage.check_space(tmp_path, (2**20 + held) // 2, streamed=False)
    storage.check_space(tmp_path, (2**20 + held) // 3, streamed=True)
    for output, streamed in (((2**20 + held) // 2 + 1, False), ((2**20 + held) // 3 + 1, True)):
        with pytest.raises(OSError, match=r"needs about .* GiB of disk and 0\.000977 GiB are free") as caught:
            storage.check_space(tmp_path, output, streamed=streamed)
        assert caught.value.errno == errno.ENOSPC
