"""A planted fault."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One planted fault."""

    what: str
    """In words."""
    file: str
    """Below ``grpo_jax/``."""
    old: str
    new: str
    tests: str
    """Test files (below ``tests/``, without their ending), one of which must fail."""
