"""Signals that ask a sweep to stop: the part in flight is finished and written first."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A sweep that stopped between two parts because a signal asked it to. The message says how to go on."""

    def __init__(self, sentence: str, number: int) -> None:
        super().__init__(sentence)
        self.exit_code = 128 + number
        """What a command ends with: 130 after Ctrl-C, 143 after SIGTERM."""


class Stop:
    """Whether a signal has asked to stop: ``stop()``."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self.signal: int | None = None

    def __call__(self) -> bool:
        """True from the first signal on."""
        return self.signal is not None

    def check(self, done: int, parts: int) -> None:
        """Raise ``Interrupted`` if a signal came and ``done`` of ``parts`` parts, all written, leave some."""
        if self.signal is not None and done < parts:
            goes_on = f"the same call with out={str(self._out)!r} goes on there"
            raise Interrupted(f"stopped after part {done} of {parts}; {goes_on}", self.signal)


@contextlib.contextmanager
def interruptible(out: Any, until: str = "this part is done") -> Iterator[Stop]:
    """Let SIGINT and SIGTERM wait for ``Stop.check``; a second one acts at once, as it did before.

    A signal after the last part raises ``Interrupted`` at the end of the block, when everything is written.
    Handlers are restored at the end. Outside the main thread, where no signal arrives, and with ``out`` None,
    where nothing would be kept, signals act as ever. A signal that the process ignores stays ignored.

    Args:
      out: the folder that holds the parts; None for none.
      until: what the first signal waits for, as it is told.
    """
    stop = Stop(out)
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def handle(number: int, frame: FrameType | None) -> None:
        if stop():
            restore()
            signal.raise_signal(number)
            return
        stop.signal = number
        with contextlib.suppress(RuntimeError, OSError):  # the signal came in the midst of another message
            print(f"\nstopping when {until}; once more stops at once", file=sys.stderr, flush=True)

    if out is not None and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            held = signal.getsignal(number)
            if held not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
    if stop.signal is not None:
        sentence = f"stopped when all parts were done; grpo_jax.load({str(out)!r}) reads the result"
        raise Interrupted(sentence, stop.signal)
