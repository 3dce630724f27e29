"""The process before its first computation: every core a device, compilations that outlive the process."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import jax

CACHE = "GRPO_JAX_CACHE"
"""Environment variable: where compilations are kept; empty switches the cache off."""


def cache_folder() -> Path | None:
    """Where compiled programs are kept: $GRPO_JAX_CACHE, else a folder in the user's cache."""
    named = os.environ.get(CACHE)
    if named is not None:
        return Path(named) if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grpo_jax" / "jax"


def start(*, devices: int | None = None, cache: bool = True) -> None:
    """Make each CPU core a device, if no computation has run yet, and switch the persistent cache on.

    For programs, not for libraries: the command line and the experiments call it, importing does not.
    Settings that the environment or the caller made already are left as they are.

    Args:
      devices: CPU devices; None is the number of cores this process may use.
      cache: keep compilations on disk. A folder that cannot be written warns, and work goes on without.
    """
    if not _devices_chosen():
        with contextlib.suppress(RuntimeError):  # a computation has run already: the devices are settled
            jax.config.update("jax_num_cpu_devices", devices or _cores())
    if cache:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        if not _setting("jax_compilation_cache_dir"):
            _keep_compilations()


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _devices_chosen() -> bool:
    named = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    return named or _setting("jax_num_cpu_devices") > 0


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


def _keep_compilations() -> None:
    folder = cache_folder()
    if folder is None:
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
