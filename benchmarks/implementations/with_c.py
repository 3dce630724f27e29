"""C through gcc: runs in vector lanes, OpenMP over blocks of runs, -ffast-math: the limit."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.case import Case, Result, Shape, Unavailable

NAME = "C"
NOTE = "gcc -O3 -march=native -ffast-math -fopenmp, 512-bit vectors, all cores; a 32-bit counter hash"
FLAGS = ["-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-fopenmp", "-fPIC"]
SOURCE = Path(__file__).with_name("kernel.c")


@functools.cache
def library(shape: Shape, double: bool) -> ctypes.CDLL:
    """The kernel compiled for one shape.

    Linked apart from compiling: a library *linked* with -ffast-math flushes subnormal numbers to zero in the
    whole process that loads it.
    """
    if shutil.which("gcc") is None:
        raise Unavailable("gcc is not installed")
    real, suffix, lanes = ("double", "", 16) if double else ("float", "f", 32)
    defines = {
        "K": shape.actions, "Q": shape.questions, "G": shape.group, "MU": shape.inner,
        "REAL": real, "W": lanes, "EXP": f"exp{suffix}", "LOG": f"log{suffix}", "SQRT": f"sqrt{suffix}",
    }  # fmt: skip
    arguments = [*FLAGS, *(f"-D{name}={value}" for name, value in defines.items())]
    tag = hashlib.sha256((SOURCE.read_text() + " ".join(arguments)).encode()).hexdigest()[:16]
    target = Path(tempfile.mkdtemp()) / f"kernel-{tag}.so"
    subprocess.run(["gcc", *arguments, "-c", str(SOURCE), "-o", str(target.with_suffix(".o"))], check=True)
    linked = ["gcc", "-shared", "-fopenmp", str(target.with_suffix(".o")), "-o", str(target), "-lm"]
    subprocess.run(linked, check=True)
    return ctypes.CDLL(str(target))


def prepare(case: Case, draws: np.ndarray | None) -> Callable[[], Result]:
    """Compiles for the shape; runs are padded to whole vectors."""
    kernel, kind = library(case.shape, case.double).sweep, case.dtype
    lanes = 16 if case.double else 32
    padded = -(-case.runs // lanes) * lanes
    pointer = np.ctypeslib.ndpointer(kind, flags="C")
    kernel.argtypes = [pointer, pointer, ctypes.c_void_p, ctypes.c_long, ctypes.c_int, pointer]
    kernel.restype = None
    numbers = np.array(
        [case.learning_rate, case.clip, case.kl_coef, case.b1, case.b2, case.eps, case.weight_decay], kind
    )
    table = np.ascontiguousarray(case.table, kind)
    given = None
    if draws is not None:
        extra = [(0, 0)] * 3 + [(0, padded - case.runs)]
        given = np.ascontiguousarray(np.pad(draws, extra), kind)

    def run() -> Result:
        found = np.empty((case.iterations, 4, padded), kind)
        kernel(found, table, None if given is None else given.ctypes.data, padded, case.iterations, numbers)
        return Result.split(found[..., : case.runs])

    run()
    return run
