"""A sweep on disk: a manifest and a netCDF file a part, written aside and renamed: a kill loses nothing."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

MANIFEST = "manifest.json"
RESULT = "sweep.nc"


class Store:
    """The folder of one sweep. A folder that holds another sweep is refused."""

    def __init__(self, folder: str | os.PathLike[str], manifest: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self._arrays: list[np.ndarray] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest = json.loads(json.dumps(manifest))
        path = self.folder / MANIFEST
        if path.exists():
            held = json.loads(path.read_text())
            different = sorted(k for k in manifest.keys() | held.keys() if manifest.get(k) != held.get(k))
            if different:
                raise ValueError(
                    f"{self.folder} holds another sweep (different: {', '.join(different)}); "
                    "give another folder, or the same arguments to go on"
                )
        else:
            _replace(path, lambda aside: aside.write_text(json.dumps(manifest, indent=1)))

    def path(self, variant: int, part: int) -> Path:
        """File of one part."""
        return self.folder / f"part-{variant:03d}-{part:06d}.nc"

    def read(self, variant: int, part: int) -> dict[str, np.ndarray] | None:
        """A finished part, or None."""
        path = self.path(variant, part)
        if not path.exists():
            return None
        with xr.open_dataset(path, engine="h5netcdf") as data:
            return {str(name): data[name].values for name in data.data_vars}

    def write(self, variant: int, part: int, result: dict[str, np.ndarray]) -> None:
        """Write aside, then rename."""
        variables = {}
        for name, value in result.items():
            dims = ("record", *(f"{name}_{i}" for i in range(value.ndim - 2)), "run")
            variables[name] = (dims, value)
        data = xr.Dataset(variables)
        _replace(self.path(variant, part), lambda aside: data.to_netcdf(aside, engine="h5netcdf"))

    def array(self, variant: int, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array on disk for results that memory need not hold; ``finish`` removes it."""
        path = self.folder / f".array-{variant:03d}-{name}.npy"
        self._arrays.append(np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape))
        return self._arrays[-1]

    @staticmethod
    def release(array: np.ndarray) -> None:
        """Hand the memory of an array on disk back; its values stay."""
        held = getattr(array, "_mmap", None)
        if held is not None and hasattr(held, "madvise"):
            held.flush()
            held.madvise(mmap.MADV_DONTNEED)

    def finish(self, data: xr.Dataset) -> None:
        """The assembled, labelled dataset beside its parts."""
        _replace(self.folder / RESULT, lambda aside: self._write_all(data, aside))
        for path in self.folder.glob(".array-*.npy"):
            path.unlink()

    def _write_all(self, data: xr.Dataset, aside: Path) -> None:
        """One variable at a time, so that no more than one is in memory."""
        data.drop_vars(list(data.data_vars)).to_netcdf(aside, engine="h5netcdf")
        for name in data.data_vars:
            data[[name]].to_netcdf(aside, engine="h5netcdf", mode="a")
            for array in self._arrays:
                self.release(array)

    def open(self) -> xr.Dataset:
        """The finished dataset, its values read from disk when they are used."""
        return xr.open_dataset(self.folder / RESULT, engine="h5netcdf")


def held_width(folder: str | os.PathLike[str] | None) -> int | None:
    """The chunk width of the sweep that a folder holds, so that it goes on with the very same program."""
    path = Path(folder) / MANIFEST if folder is not None else None
    return json.loads(path.read_text()).get("width") if path is not None and path.exists() else None


def load(folder: str | os.PathLike[str]) -> xr.Dataset:
    """The labelled dataset of a finished sweep; FileNotFoundError where there is none."""
    path = Path(folder) / RESULT
    if not path.exists():
        started = (Path(folder) / MANIFEST).exists()
        state = "holds an unfinished sweep: run it again to go on" if started else "holds no sweep"
        raise FileNotFoundError(f"{folder} {state}")
    return xr.load_dataset(path, engine="h5netcdf")


def _replace(path: Path, write: Any) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
