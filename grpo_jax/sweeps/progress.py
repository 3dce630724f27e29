"""What a sweep says of itself: beforehand, on the way, and in a closing line."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm


@dataclasses.dataclass
class Progress:
    """A bar over runs, and what to say at the end; silent where ``spoken`` is False."""

    runs: int
    iterations: int
    spoken: bool
    computed: int = 0
    """Runs that were computed, not read back."""
    updates: int = 0
    """Optimizer steps that were taken."""
    compilations: int = 0
    compile_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.ran: list[tuple[float, float]] = []
        """Start and end of every part that was computed."""
        self.started = time.perf_counter()
        self._bar = tqdm(total=self.runs, unit="run", disable=not self.spoken, file=sys.stderr)

    def say(self, sentence: str) -> None:
        """A line for people, above the bar."""
        if self.spoken:
            tqdm.write(sentence, file=sys.stderr)

    def took(self, *, compiling: float, running: tuple[float, float]) -> None:
        """What a part took, compiling 0 where its program was there; start and end of its running."""
        self.compilations += compiling > 0
        self.compile_seconds += compiling
        self.ran.append(running)

    def advance(self, runs: int, *, updates: int) -> None:
        """Some runs are done, in so many optimizer steps; in none where they were read back."""
        self.computed += runs if updates else 0
        self.updates += updates
        self._bar.update(runs)

    @property
    def run_seconds(self) -> float:
        """Seconds in which some part was running."""
        total, until = 0.0, 0.0
        for start, end in sorted(self.ran):
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def say_closing(
        self,
        made: Mapping[str, Any],
        how: str,
        *,
        seconds: float,
        broken: int,
        whole: int,
        folder: Path | None,
    ) -> None:
        """The closing line: how much, how long, how, where it is.

        Args:
          made: the dataset's attributes.
          how: what the expectations are, and why.
          seconds: from the request to the result.
          broken: runs that turned non-finite.
          whole: runs of the sweep, of which this process may have had a share.
          folder: where the results are.
        """
        back, count, threads = self.runs - self.computed, self.compilations, int(made["threads"])
        wide = (
            f"{threads} thread{'s' * (threads > 1)}" if made["devices"] == 1 else f"{made['devices']} devices"
        )
        mine = f"{self.runs:,}" + (f" of {whole:,}" if whole != self.runs else "")
        compiled = f" in {self.compile_seconds:.2f} s" if count else ""
        parts = [
            f"{mine} runs x {self.iterations:,} iterations in {seconds:.2f} s",
            f"{count} program{'s' * (count != 1)} compiled{compiled}",
            f"{back:,} runs read back" if back else "",
            how,
            f"chunks of {made['chunk_size']} runs on {wide}",
            f"{broken:,} of {whole:,} runs turned non-finite" if broken else "",
            f"in {folder}" if folder else "",
        ]
        self.say(" · ".join(part for part in parts if part))
