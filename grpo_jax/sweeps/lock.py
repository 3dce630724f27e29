"""One sweep at a time in a folder."""

from __future__ import annotations

import os
import platform
import warnings
from pathlib import Path
from types import ModuleType
from typing import IO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Lock:
    """A file that one open handle at a time may hold.

    The operating system holds the lock, and drops it when the process ends, however it ends: no stale lock
    keeps anyone out, and a cluster's job may go on at another node. The file says who holds it.

    Raises:
      BlockingIOError: another sweep holds it.
    """

    held: bool
    """False where the file system has no locks: a warning has said so."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
            if fcntl is None:
                raise OSError("no fcntl")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{self.path.parent} is in use by another sweep ({_owner(self._file)}): "
                "wait until it has ended, or give another folder"
            ) from None
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
        """Remove the file and let go."""
        if self.held:
            self.path.unlink(missing_ok=True)
            self.held = False
        self._file.close()


def _open(path: Path) -> IO[str]:
    """The file, made if there is none; a link is refused, for what it leads to would be emptied."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666), "r+")


def _owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200) or "which has just begun"
