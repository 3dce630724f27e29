"""What every test shares: two CPU devices, a compilation cache that persists, and double precision."""

import gc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from grpo_jax.sweeps import program


def _quick_compilation() -> str:
    """XLA's flags under which the suite compiles in half the time, and runs slower; unknown ones are fatal.

    ``XLA_FLAGS= pytest`` compiles as users do, and so do the experiments and notebooks of ``.ci/run``.
    """
    older = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
    return f"--xla_backend_optimization_level=0 {older}"


def pytest_configure(config: pytest.Config) -> None:
    """Set up JAX before anything compiles; flags and a cache that the environment names stay as they are."""
    os.environ.setdefault("XLA_FLAGS", _quick_compilation())
    jax.config.update("jax_num_cpu_devices", 2)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.rootpath) / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    gc.freeze()  # modules stay: the collector need not go through them
    gc.set_threshold(100_000, 50, 100)  # tracing makes many small objects and hardly any garbage in cycles


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What long tests say that they found (``record_property("found", ...)``), those of every worker."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    said = [(r.nodeid, text) for r in calls for name, text in r.user_properties if name == "found"]
    if said:
        terminalreporter.section("found")
    for test, text in said:
        terminalreporter.write_line(f"{test.rpartition('::')[2]}: {text}")


MAPPINGS, PAGES = 35_000, 2**30 // os.sysconf("SC_PAGE_SIZE")
"""Memory mappings, and pages of memory more than after the last time, from which on compiled programs are let
go. Linux allows a process 65,530 mappings, an executable takes several, and XLA crashes beyond; and Python's
collector goes through all that a process holds, again and again. What is needed again comes from the cache on
disk."""
_floor = [0]
"""Pages that were held after programs were last let go: not all of it goes back to the system."""


def _mappings() -> int:
    """0 where the system does not say."""
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 0


def _pages() -> int:
    """0 where the system does not say."""
    memory = Path("/proc/self/statm")
    return int(memory.read_text().split()[1]) if memory.exists() else 0


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    """After a test file, no more compiled programs than memory and the kernel have room for."""
    yield
    if _mappings() > MAPPINGS or _pages() > _floor[0] + PAGES:
        program._kept.clear()
        jax.clear_caches()
        gc.collect()
        _floor[0] = _pages()


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test, so that an identity can be checked to rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def built_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site as mkdocs builds it, without a warning."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip('the site needs the extra docs: pip install -e ".[docs]"')
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    root = Path(__file__).resolve().parent.parent
    built = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return out
