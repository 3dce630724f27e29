"""A sweep on disk: a manifest, a netCDF file a part, and the assembled result.

Every file is written aside and renamed, ends with a checksum and carries the manifest: a kill loses nothing,
and nothing is read back that another sweep wrote or that has changed. Only netCDF and JSON are read, so that
loading a file runs no code of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr

from grpo_jax.sweeps import netcdf
from grpo_jax.sweeps.lock import Lock
from grpo_jax.sweeps.netcdf import Damaged
from grpo_jax.sweeps.shares import Share

MANIFEST = "manifest.json"
RESULT = "sweep.nc"
LOCK = ".lock"
ASIDE = re.compile(r"\.(part-\d+-\d+\.nc|manifest\.json|sweep\.nc)\.\d+")
"""Names of files that a kill left half written."""
LEFT = re.compile(r"\.(share|process)-\d+-\d+")
"""Names of locks of several processes."""
MANIFEST_BYTES = 2**26
"""No manifest is larger."""
GLANCE = 1.0
"""Seconds that a share's lock may be in the hands of others who only look whether it is held."""
ALONE = Share()


def prepare_folder(out: str | os.PathLike[str]) -> Path:
    """The folder that ``out`` names, ``~`` expanded, made if there is none, and tried.

    Raises:
      TypeError, ValueError: ``out`` is not a path.
      OSError: a file is in its place (NotADirectoryError), or nothing can be written there.
    """
    if not isinstance(out, (str, os.PathLike)) or not isinstance(os.fspath(out), str):
        raise TypeError(f"out is {out!r}; it must be the path of a folder")
    if not os.fspath(out).strip() or "\0" in os.fspath(out):
        raise ValueError(f"out is {os.fspath(out)!r}; it must be the path of a folder")
    folder = _expanded(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        file = next(p for p in (folder, *folder.parents) if p.exists())
        raise NotADirectoryError(f"out is {out}, but {file} is a file; give a folder") from None
    except OSError as error:
        message = f"out cannot be written ({error.strerror or error}); give another folder"
        raise OSError(error.errno, message, str(folder)) from error
    return folder


def _expanded(folder: str | os.PathLike[str]) -> Path:
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{folder}: {error}") from error


def check_space(folder: Path, output: int, *, streamed: bool) -> None:
    """OSError before anything is computed where results of ``output`` bytes do not fit on the disk.

    Parts and the assembled result each take ``output`` bytes, arrays of a streamed sweep as much again. What
    parts of an earlier call take is not needed again.
    """
    held = sum(part.stat().st_size for part in folder.glob("part-*.nc"))
    needed = (3 if streamed else 2) * output - held
    free = shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"the sweep needs about {needed / 2**30:.3g} GiB of disk and {free / 2**30:.3g} GiB are free"
        raise OSError(errno.ENOSPC, f"{sizes}: make room, or give another folder", str(folder))


class Store:
    """The folder of one sweep, as a context manager: one store at a time may hold a folder, or one a share.

    A part is named by its numbers and carries them and the manifest. A part that is not what was written, or
    that lies under another's name, is renamed ``.damaged`` with a warning and reads as missing. A folder
    without a readable manifest goes by the manifest that its sound parts carry.

    Args:
      folder: see ``prepare_folder``.
      manifest: what tells this sweep from any other, as JSON.
      share: what this process computes, where several share the folder.

    Raises:
      BlockingIOError: another sweep is at work in the folder, or another process at the share.
      ValueError: the folder holds another sweep, or files that cannot be told apart.
      OSError: see ``prepare_folder``.
    """

    def __init__(
        self, folder: str | os.PathLike[str], manifest: Mapping[str, Any], share: Share = ALONE
    ) -> None:
        self.folder = prepare_folder(folder)
        self._text = _canonical(manifest)
        self._arrays: list[np.ndarray] = []
        self._locks = [Lock(self.folder / LOCK, shared=not share.alone)]
        try:
            if not share.alone:
                what = f"{share} of {self.folder}"
                self._locks.append(Lock(share.lock(self.folder), patience=GLANCE, what=what))
            else:
                self._remove(ASIDE, LEFT)
            self._claim()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another sweep have the folder."""
        for lock in reversed(self._locks):
            lock.release()

    def _remove(self, *names: re.Pattern[str]) -> None:
        """Remove what processes that have ended left behind; without locks it may be another's, at work."""
        if self._locks[0].held:
            for path in self.folder.iterdir():
                if any(name.fullmatch(path.name) for name in names):
                    path.unlink()

    def _claim(self) -> None:
        held = held_manifest(self.folder)
        if held is not None:
            self._refuse_other(held, f"{self.folder} holds")
        path = self.folder / MANIFEST
        try:
            sound = _read_manifest(path) == held
        except FileNotFoundError:
            sound = False
        except Damaged as damage:
            sound = False
            self._set_aside(path, damage, "written again")
        if not sound:
            text = json.dumps(json.loads(self._text) | {"checksum": _digest(self._text)}, indent=1)
            with self._explained(path), netcdf.replacing(path) as file:
                file.write(text.encode())

    def _refuse_other(self, held: dict[str, Any], found: str) -> None:
        mine = json.loads(self._text)
        different = sorted(k for k in mine.keys() | held.keys() if mine.get(k) != held.get(k))
        if different:
            raise ValueError(
                f"{found} another sweep (different: {', '.join(different)}); "
                "give another folder, or the same arguments to go on"
            )

    def path(self, variant: int, part: int) -> Path:
        """File of one part."""
        return self.folder / part_name(variant, part)

    def read(self, variant: int, part: int) -> dict[str, np.ndarray] | None:
        """A finished part as it was written, or None, where it must be computed: missing, or damaged.

        Raises:
          ValueError: the part is another sweep's.
        """
        path = self.path(variant, part)
        if not os.path.lexists(path):
            return None
        try:
            data = netcdf.read(path)
            self._refuse_other(_manifest_in(data.attrs, path), f"{path} belongs to")
            place = [str(data.attrs.get(key)) for key in ("variant", "part")]
            if place != [str(variant), str(part)]:
                raise Damaged(f"{path} holds part {place[1]} of variant {place[0]}")
        except Damaged as damage:
            self._set_aside(path, damage, "computed again")
            return None
        return {str(name): data[name].values for name in data.data_vars}

    def _set_aside(self, path: Path, damage: Damaged, remedy: str) -> None:
        names = (f"{path.name}.damaged" + (f".{i}" if i else "") for i in range(10**6))
        kept = next(p for p in map(path.with_name, names) if not os.path.lexists(p))
        path.rename(kept)
        warnings.warn(f"{damage}. It is kept as {kept.name} and {remedy}", stacklevel=2)

    def write(self, variant: int, part: int, result: Mapping[str, np.ndarray]) -> None:
        """Write a part: diagnostics by name. OSError where the disk is full: the parts before stay."""
        own = {name: [f"{name}.{axis}" for axis in range(value.ndim)] for name, value in result.items()}
        data = xr.Dataset({name: (own[name], value) for name, value in result.items()})
        data.attrs = {"manifest": self._text, "variant": variant, "part": part}
        path = self.path(variant, part)
        with self._explained(path):
            netcdf.write(path, data)

    @contextlib.contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            parts = len(list(self.folder.glob("part-*.nc")))
            stays = f"finished parts stay ({parts}), and the same call goes on with them once this is mended"
            raise OSError(error.errno, f"{error.strerror or error}; {stays}", str(path)) from error

    def missing(self, parts: Sequence[tuple[int, int]]) -> list[int]:
        """The running numbers of those of ``parts``, (variant, part) each, that have no file."""
        there = {path.name for path in self.folder.iterdir()}
        return [number for number, part in enumerate(parts) if part_name(*part) not in there]

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array on disk for results that memory need not hold. Its file has no name and ends with it."""
        bytes_ = math.prod(shape) * dtype.itemsize
        if not bytes_:
            return np.empty(shape, dtype)
        with self._explained(self.folder), tempfile.TemporaryFile(dir=self.folder) as file:
            if hasattr(os, "posix_fallocate"):  # a page without a place on a full disk would kill the process
                os.posix_fallocate(file.fileno(), 0, bytes_)
            self._arrays.append(np.memmap(file, dtype, mode="r+", shape=shape))
        return self._arrays[-1]

    @staticmethod
    def release(array: np.ndarray) -> None:
        """Hand the memory of an array on disk back; its values stay."""
        held = getattr(array, "_mmap", None)
        if held is not None and hasattr(held, "madvise"):
            held.flush()
            held.madvise(mmap.MADV_DONTNEED)

    def finish(self, data: xr.Dataset) -> None:
        """Write the assembled, labelled dataset beside its parts; of several processes in a ``turn``."""
        self._remove(ASIDE)  # all parts are there, and nobody else has a turn
        path = self.folder / RESULT
        with self._explained(path):
            netcdf.write(path, data.assign_attrs(manifest=self._text), between=self._release_all)
        self._arrays.clear()

    def _release_all(self) -> None:
        for array in self._arrays:
            self.release(array)

    def open(self) -> xr.Dataset:
        """The finished dataset, its values read from disk when they are used."""
        return _public(netcdf.view(self.folder / RESULT))

    def result(self) -> xr.Dataset | None:
        """The finished dataset as ``open`` gives it, where it is there and sound; else None."""
        path = self.folder / RESULT
        with contextlib.suppress(Damaged, FileNotFoundError):
            if _manifest_in(netcdf.attributes(path), path) == json.loads(self._text):
                return self.open()
        return None


def part_name(variant: int, part: int) -> str:
    """Name of the file of one part."""
    return f"part-{variant:03d}-{part:06d}.nc"


def held_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the sweep that a folder holds; where the file is lost, as a sound part has it.

    Raises:
      ValueError: there are files of a sweep, and none of them says soundly which.
    """
    path = folder / MANIFEST
    faults: list[Damaged] = []
    try:
        return _read_manifest(path)
    except FileNotFoundError:
        lost = "is missing"
    except Damaged as damage:
        lost = str(damage).removeprefix(f"{path} ")
    files = [*sorted(folder.glob("part-*.nc")), *folder.glob(RESULT)]
    for file in files:
        try:
            return _manifest_in(netcdf.attributes(file), file)
        except Damaged as damage:
            faults.append(damage)
    if faults:
        raise ValueError(
            f"{path} {lost}, and no file beside it can stand in for it: {faults[0]}. "
            "Give another folder, or move these files away to begin anew"
        )
    return None


def has_manifest(folder: Path) -> bool:
    """Whether the folder's manifest is there and sound."""
    with contextlib.suppress(Damaged, FileNotFoundError):
        return bool(_read_manifest(folder / MANIFEST))
    return False


def held_layout(folder: Path) -> tuple[int, int] | None:
    """(runs in a chunk, chunks in a part) of the sweep that a folder holds; None for none."""
    held = held_manifest(folder) or {}
    numbers = held.get("chunk_size"), held.get("chunks")
    return numbers if all(type(n) is int and n > 0 for n in numbers) else None  # type: ignore[return-value]


def _read_manifest(path: Path) -> dict[str, Any]:
    if path.exists() and (not path.is_file() or path.stat().st_size > MANIFEST_BYTES):
        raise Damaged(f"{path} is not a manifest")
    held = _json(path.read_bytes(), path)
    checksum = held.pop("checksum", None)
    if checksum != _digest(_canonical(held)):
        raise Damaged(f"{path} does not match its checksum: it is incomplete or has been changed")
    return held


def _manifest_in(attributes: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    return _json(attributes.get("manifest", ""), path)


def _json(text: Any, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise Damaged(f"{path} has no readable manifest: {error}") from error
    if not isinstance(found, dict):
        raise Damaged(f"{path} has no readable manifest: it is not a table")
    return found


def _canonical(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load(folder: str | os.PathLike[str]) -> xr.Dataset:
    """The labelled dataset of a finished sweep, in memory.

    Raises:
      FileNotFoundError: the folder holds no finished sweep.
      ValueError: the result is damaged, or another sweep's than the folder's parts.
    """
    place = _expanded(folder)
    path = place / RESULT
    started = (place / MANIFEST).exists()
    if not path.exists():
        state = "holds an unfinished sweep: run it again to go on" if started else "holds no sweep"
        raise FileNotFoundError(f"{folder} {state if place.is_dir() else 'is not a folder'}")
    again = "run the same sweep with the same out again: its finished parts are read back, not computed"
    held = None
    with contextlib.suppress(Damaged, FileNotFoundError):  # a sound result speaks for itself
        held = _read_manifest(place / MANIFEST)
    try:
        data = netcdf.read(path)
        if held not in (None, _manifest_in(data.attrs, path)):
            raise Damaged(f"{path} is the result of another sweep than {MANIFEST} tells of")
    except Damaged as damage:
        raise ValueError(f"{damage}; {again}") from damage
    return _public(data)


def _public(data: xr.Dataset) -> xr.Dataset:
    """Without what only the folder needs."""
    data.attrs.pop("manifest", None)
    return data
