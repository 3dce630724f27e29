"""What processes of one sweep do one after the other: decide on the layout, assemble the result."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

from grpo_jax.sweeps.lock import Lock
from grpo_jax.sweeps.shares import Share
from grpo_jax.sweeps.storage import has_manifest

TURN = ".turn"


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """This process's turn: the others that ask for one wait until the block has ended."""
    lock = Lock(folder / TURN, patience=math.inf)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def planning(folder: Path | None, share: Share) -> Iterator[None]:
    """Let one of several processes decide what a new folder's manifest says; the others wait and follow."""
    with contextlib.ExitStack() as first:
        if folder is not None and not share.alone and not has_manifest(folder):
            first.enter_context(turn(folder))
            if has_manifest(folder):
                first.close()
        yield
