"""The process: its cores, compilations that outlive it, and what they ask of the compiler."""

from __future__ import annotations

import functools
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

CACHE = "GRPO_JAX_CACHE"
"""Environment variable: where compilations are kept; empty switches the cache off."""
DISABLED = ("cpu-parallel-task-assigner", "cse_barrier_expander", "small-while-loop-hoisting")
"""Passes of XLA's CPU compiler that are left out. The last makes a short loop one kernel, borders and all."""
SOONER = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 2}
"""What compiles a network in two thirds of the time, and lets it run as fast: matrix products, which this
does not touch, are most of its running. Its results stay the same to rounding."""


def cache_folder() -> Path | None:
    """Where compiled programs are kept: $GRPO_JAX_CACHE, else in the user's cache; None for nowhere."""
    named = os.environ.get(CACHE)
    if named is not None:
        return Path(named) if named else None
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # neither $HOME nor an entry of this user, as in a container
        return None
    return cache / "grpo_jax" / "jax"


def cores() -> int:
    """The CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


@functools.cache
def keep_compilations() -> None:
    """Switch JAX's persistent compilation cache on, once a process, so that programs compile once a machine.

    The first run or sweep calls it. A cache that the environment or the caller chose is left as it is; a
    folder that cannot be written warns, and work goes on without.
    """
    if _setting("jax_compilation_cache_dir"):
        return
    folder = cache_folder()
    if folder is None:
        if CACHE not in os.environ:
            said = f"compilations are not kept: this user has no home; ${CACHE} may name a folder"
            warnings.warn(said, stacklevel=3)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        warnings.warn(f"compilations are not kept: {folder} cannot be written ({error})", stacklevel=3)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


@functools.cache
def compiler_options(*, networks: bool = False) -> dict[str, Any]:
    """What programs of small elementwise kernels want of the compiler, on the default backend; {} elsewhere.

    On a CPU: the barriers of ``kernels.materialize`` stay, no splitting of one kernel over threads (the runs
    are already spread over threads, and a kernel of microseconds loses more by the hand-over than it gains),
    and 512-bit vectors where it has them. ``networks`` are compiled ``SOONER`` and gain nothing by wide
    vectors. An option that this compiler does not know is left out.
    """
    if jax.default_backend() != "cpu":
        return {}
    wanted: dict[str, Any] = {"xla_disable_hlo_passes": ",".join(DISABLED)}
    if networks:
        wanted |= SOONER
    elif _wide_vectors():
        wanted["xla_cpu_prefer_vector_width"] = 512
    return wanted if _known(wanted) else {n: v for n, v in wanted.items() if _known({n: v})}


def _known(options: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "compile option" not in str(error):
            raise
        return False
    return True


def _wide_vectors() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def forgiving_streams() -> None:
    """Let a command speak to whatever listens: what a stream cannot write is ?, a closed one hears nothing.

    For entry points; a program that calls this package has streams of its own.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def staged(*trees: Any) -> bool:
    """Whether this call is being traced, so that an outer program compiles it."""
    leaves = jax.tree.leaves((trees, jnp.zeros(())))
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
