"""Several processes at one sweep: whose which part is, and when waiting for another's is in vain.

Parts are files, so that processes need nothing of each other but a folder that all of them see.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from grpo_jax.sweeps.lock import is_held

LATE = 60.0
"""Seconds after the last sign of who was seen at work: so late may a network folder show a file."""
PATIENCE = 600.0
"""Seconds without a new part to wait for a process that was never seen: it may not have begun, and there are
folders that show no locks of other machines."""
PAUSES = (0.05, 5.0)
"""Seconds between two looks into the folder: at first, and at last."""

T = TypeVar("T")


class Unfinished(RuntimeError):
    """Own parts are written, those of others missing. The message names them and says how to go on."""


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of ``count`` processes computes: the parts whose running number is ``index`` modulo ``count``.

    Every part is in one share, whatever the count; where there are fewer parts than shares, some are empty.

    >>> [Share(i, 3).of("abcde") for i in range(3)]
    [['a', 'd'], ['b', 'e'], ['c']]
    """

    index: int = 0
    count: int = 1
    waits: bool = False
    """For the other processes, which work at the same time."""

    @property
    def alone(self) -> bool:
        """Whether it is the whole sweep."""
        return self.count == 1

    def of(self, parts: Sequence[T]) -> list[T]:
        """Its own of all parts in order."""
        return list(parts[self.index :: self.count])

    def lock(self, folder: Path, index: int | None = None) -> Path:
        """The file that its process holds, or another's of this sweep."""
        return folder / f".share-{self.index if index is None else index}-{self.count}"

    def __str__(self) -> str:
        return f"{'process' if self.waits else 'share'} {self.index}/{self.count}"


class Others:
    """The other processes of a sweep, of which a folder shows parts and locks.

    Args:
      share: this process's.
      missing: the running numbers of the parts that are not there.
    """

    def __init__(self, folder: Path, share: Share, missing: Callable[[], list[int]]) -> None:
        self._folder, self._share, self._missing = folder, share, missing
        self._unseen = set(range(share.count)) - {share.index}

    def look(self) -> None:
        """Take note of who is at work: only of these an end can be told from a late beginning."""
        if self._share.waits:
            self._unseen = {i for i in self._unseen if not is_held(self._share.lock(self._folder, i))}

    def wait(self, stopped: Callable[[], bool], name: Callable[[int], str]) -> list[int]:
        """Wait until no part is missing, or a signal says to stop; gives the numbers that are missing then.

        Args:
          stopped: whether a signal came.
          name: the file of the part of a number.

        Raises:
          Unfinished: parts are missing, and the processes whose they are have ended or gave no sign, or are
            not waited for.
        """
        left, sign, pause = self._missing(), time.monotonic(), PAUSES[0]
        while left and not stopped():
            self.look()
            owners = {number % self._share.count for number in left} - {self._share.index}
            working = any(is_held(self._share.lock(self._folder, i)) for i in owners - self._unseen)
            before, left = left, self._missing()
            if working or len(left) < len(before):
                sign = time.monotonic()
            limit = PATIENCE if owners & self._unseen else LATE
            if left and (not self._share.waits or time.monotonic() - sign > limit):
                raise Unfinished(self._sentence(left, name))
            time.sleep(pause if left else 0)
            pause = min(2 * pause, PAUSES[1])
        return left

    def _sentence(self, left: list[int], name: Callable[[int], str]) -> str:
        owners = sorted({number % self._share.count for number in left})
        kind = ("processes" if len(owners) > 1 else "process") if self._share.waits else "share"
        kind += "s" if len(owners) > 1 and not self._share.waits else ""
        files = ", ".join([name(number) for number in left[:3]] + ["..."] * (len(left) > 3))
        missing = f"parts still missing: {len(left)}, of {kind} {_listed(owners)} ({files})"
        if not self._share.waits:
            return (
                f"{self._share} is done; {missing}. The share that ends last assembles the result; so does "
                "the same call without a share, which computes what is missing then"
            )
        unseen = sorted(self._unseen.intersection(owners))
        why = (
            f"no sign of {_listed(unseen)} in {PATIENCE:g} s: do all of them see {self._folder}?"
            if unseen
            else "it ended before they were written:"
        )
        return f"{missing}; {why} the same call goes on with the parts that are finished"


def _listed(numbers: Sequence[int]) -> str:
    few = ", ".join(str(number) for number in numbers[:8])
    return f"{few} and {len(numbers) - 8} more" if len(numbers) > 8 else few
