"""The parts of a sweep, read back or computed: threads take them in turn, a share leaves some to others."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from grpo_jax.sweeps.interrupt import Stop
from grpo_jax.sweeps.layout import updates
from grpo_jax.sweeps.program import Program, arguments
from grpo_jax.sweeps.progress import Progress
from grpo_jax.sweeps.shares import Others, Share
from grpo_jax.sweeps.storage import Store, part_name
from grpo_jax.sweeps.tuning import remember_compiling
from grpo_jax.sweeps.work import Place, Work

Results = dict[str, np.ndarray]
"""What a part recorded: name -> [recorded, ..., runs]."""


@dataclasses.dataclass(frozen=True)
class Computing:
    """What is computed by which programs, where parts are kept, who is told, and what may stop it."""

    work: Work
    programs: Sequence[Program]
    store: Store | None
    bar: Progress
    stop: Stop

    @property
    def places(self) -> list[Place]:
        """All parts in order."""
        return self.work.places(self.programs[0].shape)

    def share(self, share: Share) -> None:
        """Have the parts of a share on disk, and wait for those of the others.

        Raises:
          Unfinished: parts of others are missing and are not to be waited for, or in vain.
        """
        assert self.store is not None
        store, places, width = self.store, self.places, self.programs[0].shape.runs
        parts = [(variant, first // width) for variant, first in places]
        others = Others(store.folder, share, lambda: store.missing(parts))
        others.look()
        for _ in self.parts(share.of(places)):
            others.look()
        if share.waits:
            self.bar.say("this process's parts are done; the others' are still to come")
        left = others.wait(self.stop, lambda number: part_name(*parts[number]))
        self.stop.check(len(places) - len(left), len(places))

    def parts(self, places: Sequence[Place]) -> Iterator[tuple[int, int, Results]]:
        """Variant, first run and results of these parts in order, on disk where there is a store."""
        work, width = self.work, self.programs[0].shape.runs
        for variant, first, done, computed in self._parts(places):
            if computed and self.store:
                self.store.write(variant, first // width, done)
            yield variant, first, done
            steps, count = (
                updates(work.configs[variant], work.request.iterations),
                min(width, work.runs - first),
            )
            self.bar.advance(count, updates=count * steps if computed else 0)

    def _parts(self, places: Sequence[Place]) -> Iterator[tuple[int, int, Results, bool]]:
        """Besides, whether a part was computed now. After a signal only the parts in flight still come."""
        work, shape = self.work, self.programs[0].shape
        given = [arguments(c, a, work.root) for c, a in zip(work.configs, work.axes, strict=True)]

        def computed(variant: int, first: int) -> Any:
            program = self.programs[variant]
            compiling = program.compile()
            if compiling:
                remember_compiling(program.hash, compiling)
            start = time.perf_counter()
            found = program(given[variant], *work.part(work.axes[variant], first, shape.runs))
            running = (start, time.perf_counter())
            return (
                {name: value[..., : work.runs - first] for name, value in found.items()},
                compiling,
                running,
            )

        ahead: deque[tuple[int, int, Any]] = deque()
        finished = 0
        pool = ThreadPoolExecutor(shape.threads)
        try:
            for variant, first in places:
                if self.stop():
                    break
                done = self.store.read(variant, first // shape.runs) if self.store else None
                ahead.append((variant, first, done or pool.submit(computed, variant, first)))
                if len(ahead) > shape.threads:
                    yield self._taken(*ahead.popleft())
                    finished += 1
            while ahead and not (self.stop() and isinstance(ahead[0][2], Future) and ahead[0][2].cancel()):
                yield self._taken(*ahead.popleft())
                finished += 1
        finally:  # nothing waits for what is in flight, so that a second Ctrl-C acts at once
            pool.shutdown(wait=False, cancel_futures=True)
        self.stop.check(finished, len(places))

    def _taken(self, variant: int, first: int, done: Any) -> tuple[int, int, Results, bool]:
        if not isinstance(done, Future):
            return variant, first, done, False
        found, compiling, running = done.result()
        self.bar.took(compiling=compiling, running=running)
        return variant, first, found, True
