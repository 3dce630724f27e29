"""netCDF files that end with a checksum: what is read is what was written, to the last bit.

The checksum covers every byte and is compared before HDF5 parses any: HDF5 reads other values from flipped
bits, or never returns. It ignores what follows its own data, so that any netCDF reader opens these files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

MARK = b"\ngrpo_jax sha256 "
FOOTER = len(MARK) + 64 + 1
"""Bytes after the netCDF data: the mark, 64 hexadecimal digits, the end of the line."""
BLOCK = 2**26
"""Bytes of a variable that are copied at once."""


class Damaged(ValueError):
    """A file that cannot be trusted. The message names it and says what is wrong."""


class Target(io.FileIO):
    """A file that HDF5 writes through and that keeps an error for later.

    A failed write, told to HDF5, leaves it a file that it cannot close: on a full disk the process crashes.
    So HDF5 is told that all went well, and ``check`` raises when it is done.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, or keep the error and write nothing more."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(view):
                done += self.put(view[done:])
        except OSError as error:
            self.error = error
        return len(view)

    def put(self, view: memoryview) -> int:
        """Bytes written by one call of the system."""
        return super().write(view)

    def truncate(self, size: int | None = None) -> int:
        """As a file's own, the error kept."""
        try:
            return super().truncate(size) if self.error is None else 0
        except OSError as error:
            self.error = error
            return 0

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Target]:
    """A file aside that takes the place of ``path`` once it is whole and on the disk; else ``path`` stays."""
    aside = path.with_name(f".{path.name}.{secrets.randbits(64)}")  # machines count processes alike
    try:
        with Target(aside, "xb+") as file:
            yield file
            file.check()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Put a renaming on the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_storable(dtypes: Mapping[str, Any]) -> None:
    """Raise where netCDF cannot hold an array of this name and type, before it is computed."""
    for name, given in dtypes.items():
        dtype = np.dtype(given)
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            raise ValueError(f"{name!r} cannot name a variable in a file; leave out '/'")
        if dtype.isbuiltin != 1 or dtype.kind not in "biuf":
            raise TypeError(f"{name} is of type {dtype}, which netCDF does not know; return float32 instead")


def write(path: Path, data: xr.Dataset, between: Callable[[], None] = lambda: None) -> None:
    """Write a dataset block by block, so that memory holds no copy of it, then its checksum.

    Args:
      path: where; a file that is there is replaced when the new one is whole.
      data: variables and coordinates of numbers, truth values or strings.
      between: called after each variable.

    Raises:
      OSError: the disk is full or fails; ``path`` is as it was.
      TypeError: a type that netCDF does not know.
    """
    import h5netcdf  # here, so that sweeps that write nothing do not wait for it

    check_storable({str(name): variable.dtype for name, variable in data.data_vars.items()})
    with replacing(path) as target:
        with h5netcdf.File(target, "w") as file:
            for name, size in data.sizes.items():
                file.dimensions[str(name)] = size
            for name, variable in itertools.chain(data.coords.items(), data.data_vars.items()):
                _add(file, str(name), variable, target)
                between()
                target.check()
            for key, value in data.attrs.items():
                file.attrs[str(key)] = _attribute(value)
            labels = [str(name) for name in data.coords if name not in data.sizes]
            if labels:
                file.attrs["coordinates"] = " ".join(labels)  # the convention by which readers know them
        target.check()
        size = target.seek(0, os.SEEK_END)
        target.write(MARK + _digest(target, size) + b"\n")


def _add(file: Any, name: str, array: xr.DataArray, target: Target) -> None:
    import h5py

    values = array.values
    dtype: Any = values.dtype
    if dtype.kind in "OTU":
        dtype, values = h5py.string_dtype(), np.vectorize(str, otypes=[object])(values)
    elif dtype.kind == "b":
        dtype = np.dtype("i1")
    variable = file.create_variable(name, tuple(map(str, array.dims)), dtype)
    for key, value in array.attrs.items():
        variable.attrs[str(key)] = _attribute(value)
    if values.dtype.kind == "b":
        variable.attrs["dtype"] = "bool"  # xarray's convention
    for block in _blocks(values.shape, values.dtype.itemsize):
        variable[block] = np.asarray(values[block], dtype.type if dtype.kind == "O" else dtype, order="C")
        target.check()


def _attribute(value: Any) -> Any:
    """Numbers and strings as they are, everything else as text."""
    plain = np.asarray(value).dtype.kind in "iufU"
    return value if plain else str(value)


def _blocks(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int | slice, ...]]:
    """Indices of pieces of at most ``BLOCK`` bytes (one item at least) that together are the whole array."""
    if not shape:
        yield ()
        return
    axis = 0
    while axis < len(shape) - 1 and math.prod(shape[axis + 1 :]) * itemsize > BLOCK:
        axis += 1
    step = max(1, BLOCK // max(1, math.prod(shape[axis + 1 :]) * itemsize))
    for lead in np.ndindex(shape[:axis]):
        for start in range(0, shape[axis], step):
            yield (*lead, slice(start, start + step))


def _digest(file: Any, size: int) -> bytes:
    """SHA-256 of the first ``size`` bytes, hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0:
        piece = file.read(min(size, 2**20))
        if not piece:
            break
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest().encode()


def verify(path: Path) -> None:
    """Raise ``Damaged`` unless the file is what ``write`` wrote, to the last bit."""
    if not path.is_file():
        raise Damaged(f"{path} is not a file")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - FOOTER
        found = _digest(file, size) if size > 0 else b""
        end = file.read() if size > 0 else b""
    if not end.startswith(MARK):
        raise Damaged(f"{path} does not end with a checksum: it is truncated, or another program wrote it")
    if end != MARK + found + b"\n":
        raise Damaged(f"{path} does not match its checksum: its bytes have changed")


def read(path: Path) -> xr.Dataset:
    """The dataset in memory; ``Damaged`` where the file is not as it was written."""
    verify(path)
    with _opened(path) as data:
        return data.load()


def attributes(path: Path) -> dict[str, Any]:
    """The attributes of a file, verified as ``read`` does."""
    verify(path)
    with _opened(path) as data:
        return dict(data.attrs)


def view(path: Path) -> xr.Dataset:
    """The dataset of a file that was just written, its values read when they are used."""
    return _open(path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[xr.Dataset]:
    """A file whose checksum is right may still have been made to deceive."""
    try:
        _check_plain(path)
        with _open(path) as data:
            yield data
    except (Damaged, MemoryError):
        raise
    except Exception as error:
        raise Damaged(f"{path} cannot be read: {error}") from error


def _open(path: Path) -> xr.Dataset:
    return xr.open_dataset(path, engine="h5netcdf", decode_times=False)


def _check_plain(path: Path) -> None:
    """Every value lies in this file as it is (no links, no external or virtual data, no filters) and fits."""
    import h5py

    size = path.stat().st_size
    with h5py.File(path, "r") as file:
        for name in file:
            direct = isinstance(file.get(name, getlink=True), h5py.HardLink)
            item = file[name] if direct else None
            if not isinstance(item, h5py.Dataset) or not _is_plain(item):
                raise Damaged(f"{path} holds {name!r} in a form that no sweep writes")
            claimed = math.prod(item.shape) * item.dtype.itemsize
            empty = item.attrs.get("NAME", b"").startswith(b"This is a netCDF dimension but not")
            if claimed > size and not empty:
                raise Damaged(f"{path} claims {claimed} bytes for {name!r} and has {size}")


def _is_plain(item: Any) -> bool:
    import h5py

    elsewhere = item.external or item.is_virtual or item.chunks
    known = item.dtype.kind in "biuf" or h5py.check_string_dtype(item.dtype) is not None
    labelled = not item.ndim or item.is_scale or "DIMENSION_LIST" in item.attrs
    return bool(known and labelled and not elsewhere)
