"""Folders of made-up sweeps, and processes that know the storage alone."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np

from grpo_jax.sweeps import storage
from grpo_jax.sweeps.storage import Store

MINE = {"seeds": "0 to 6", "chunk_size": 2, "chunks": 3, "record": ["reward", "finite"]}
OTHER = MINE | {"seeds": "7 to 13"}
PACKAGE = Path(storage.__file__).parents[1]


def environment():
    """For a process of this package that keeps whatever it compiles, as the tests do (``conftest``)."""
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    kept = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return {**os.environ, **kept, "PYTHONPATH": path}


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
