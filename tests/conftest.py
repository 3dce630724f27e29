"""What every test shares: two CPU devices, a compilation cache that persists, and double precision."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Set up JAX before anything compiles; a cache named by the environment is left as it is."""
    jax.config.update("jax_num_cpu_devices", 2)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.rootpath) / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test, so that an identity can be checked to rounding."""
    with jax.enable_x64(True):
        yield
