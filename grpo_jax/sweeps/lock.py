"""Who may be in a folder: one sweep at a time, or several processes of one sweep, each with a share."""

from __future__ import annotations

import os
import platform
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import IO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PAUSE = 0.05
"""Seconds between two tries to take a lock."""


class Lock:
    """A file that one open handle at a time may hold, or several that share it.

    The operating system holds the lock, and drops it when the process ends, however it ends: no stale lock
    keeps anyone out, and a cluster's job may go on at another node. The file says who holds it.

    Args:
      path: the file, made if there is none.
      shared: let others in who share it, too.
      patience: seconds to wait for a holder to let go.
      what: what is locked, for people; None is the file's folder.

    Raises:
      BlockingIOError: another sweep holds it.
    """

    held: bool
    """False where the file system has no locks: a warning has said so."""

    def __init__(
        self, path: Path, *, shared: bool = False, patience: float = 0.0, what: str | None = None
    ) -> None:
        self.path, self.shared, self.what = path, shared, what or str(path.parent)
        self._until = time.monotonic() + patience
        self._file = _open(path)
        try:
            self.held = self._take()
            while self.held and not self._current():  # the holder before removed the file that we opened
                self._file.close()
                self._file = _open(path)
                self.held = self._take()
        except BaseException:
            self._file.close()
            raise
        if self.held:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {platform.node()}")
            self._file.flush()

    def _take(self) -> bool:
        try:
            while not _locked(self._file, shared=self.shared):
                if time.monotonic() >= self._until:
                    raise BlockingIOError(
                        f"{self.what} is in use by another sweep ({_owner(self._file)}): "
                        "wait until it has ended, or give another folder"
                    )
                time.sleep(PAUSE)
        except BlockingIOError:
            raise
        except OSError as error:
            warnings.warn(
                f"{self.path.parent} has no locks ({error}): take care that no second sweep writes there",
                stacklevel=4,
            )
            return False
        return True

    def _current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go, and remove the file unless others still share it."""
        if self.held:
            if not self.shared or _locked(self._file, shared=False):
                self.path.unlink(missing_ok=True)
            self.held = False
        self._file.close()


def is_held(path: Path) -> bool:
    """Whether some process, this one included, has this lock to itself; False where that cannot be told."""
    try:
        with os.fdopen(os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))) as file:
            return not _locked(file, shared=True)  # for the moment until the file is closed
    except OSError:
        return False


def _locked(file: IO[str], *, shared: bool) -> bool:
    """Take the lock, or say that another has it; OSError where the file system has none."""
    if fcntl is None:
        raise OSError("no fcntl")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> IO[str]:
    """The file, made if there is none; a link is refused, for what it leads to would be emptied."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666), "r+")


def _owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200) or "which has just begun"
