"""What every test shares: two CPU devices, a compilation cache that persists, and double precision."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from grpo_jax.sweeps import program


def pytest_configure(config: pytest.Config) -> None:
    """Set up JAX before anything compiles; a cache named by the environment is left as it is."""
    jax.config.update("jax_num_cpu_devices", 2)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.rootpath) / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


MAPPINGS = 35_000
"""Memory mappings from which on compiled programs are let go: Linux allows a process 65,530, an executable
takes several, and XLA crashes beyond. Those that are needed again come from the cache on disk."""


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    """After a test file, no more compiled programs than memory and the kernel have room for."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAPPINGS:
        program._kept.clear()
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test, so that an identity can be checked to rounding."""
    with jax.enable_x64(True):
        yield
