"""A traced step on lanes: axes that are no lanes are unrolled, and elementwise operations are left.

The general step is traced once, as for any program, and evaluated again on lane arrays (``arrays``): slices,
concatenations, broadcasts and reductions over leading axes rearrange elements while tracing, and what is left
computes on one element after the other. That lowers wherever elementwise operations and loops do, and its
mathematics is the general path's own, because it is its trace. Questions may be lanes beside runs: then a sum
over them goes across lanes, and whatever else mixes them has no form.
"""

from __future__ import annotations

import itertools
import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from grpo_jax.fused.arrays import (
    RUNS,
    NoLanesError,
    asked,
    asks,
    filled,
    held,
    is_known,
    known,
    known_apart,
    rows,
)
from grpo_jax.fused.rules import ACROSS, ELEMENTWISE, FOLDED_BY, MOVED, NUMBERS, apart, apart_from_runs

CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}
"""Operation -> the parameter that holds the trace it calls."""

MATCHED = ("add_any", "clamp", "select_n")
"""Operations whose operands must be of one shape."""

Arrays = list[np.ndarray]


class Lanes:
    """Evaluates traces on lane arrays, each operation on the same elements once.

    Args:
      shape: [runs, W], the lanes.
      questions: how many of the W lanes of a run are questions; 1 where its questions are unrolled.
      made: what has been computed already.
    """

    def __init__(
        self, shape: tuple[int, int], questions: int = 1, made: ChainMap[Any, Any] | None = None
    ) -> None:
        self.shape, self.questions = shape, questions
        self._made: ChainMap[Any, Any] = ChainMap() if made is None else made

    def __call__(self, trace: Any, arrays: Sequence[np.ndarray]) -> Arrays:
        """What a closed trace gives of these arguments; NoLanesError where it has no form on lanes."""
        jaxpr: Any = getattr(trace, "jaxpr", trace)
        values: dict[Any, np.ndarray] = {}
        for var, value in zip(jaxpr.constvars, getattr(trace, "consts", ()), strict=True):
            values[var] = known_apart(value, var.aval.shape, self.shape[1])
        values.update(zip(jaxpr.invars, arrays, strict=True))

        def read(atom: Any) -> np.ndarray:
            literal = isinstance(atom, Literal)
            return known(np.asarray(atom.val).astype(atom.aval.dtype)) if literal else values[atom]

        for eqn in _needed(jaxpr):
            found = self._apply(eqn, [read(atom) for atom in eqn.invars])
            if any(x.shape != held(var.aval.shape) for x, var in zip(found, eqn.outvars, strict=True)):
                raise NoLanesError(f"{eqn.primitive.name} over runs")
            values.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _apply(self, eqn: Any, arrays: Arrays) -> Arrays:
        name = eqn.primitive.name
        if name in MOVED:
            return MOVED[name](eqn, *arrays)
        if name in ELEMENTWISE:
            return [self._each(eqn.primitive, eqn.params, eqn.outvars[0].aval.dtype, *arrays)]
        if name in FOLDED_BY:
            return [self._folded(FOLDED_BY[name], eqn, *arrays)]
        if name in CALLS:
            return self(eqn.params[CALLS[name]], arrays)
        special: dict[str, Callable[[Any, Arrays], Arrays]] = {
            "cond": self._branch,
            "cumsum": self._running,
            "custom_linear_solve": self._solution,
            "iota": self._numbered,
            "scan": self._loop,
        }
        if name not in special:
            raise NoLanesError(f"{name} has no form on single lanes")
        return special[name](eqn, arrays)

    def _each(self, primitive: Any, params: dict[str, Any], dtype: Any, *arrays: np.ndarray) -> np.ndarray:
        shape = np.broadcast_shapes(*(x.shape for x in arrays))
        rows = zip(*(np.broadcast_to(x, shape).flat for x in arrays), strict=True)
        return filled(shape, (self._computed(primitive, params, dtype, row) for row in rows))

    def _computed(self, primitive: Any, params: dict[str, Any], dtype: Any, row: tuple[Any, ...]) -> Any:
        """One element, known if it can be, and otherwise computed where it has not been before."""
        name = primitive.name
        if all(map(is_known, row)):
            if name == "convert_element_type":
                return row[0].astype(dtype)
            if name in NUMBERS:
                with np.errstate(all="ignore"):  # hashing wraps around
                    return np.asarray(NUMBERS[name](*row)).astype(dtype)[()]
        if name == "select_n" and is_known(row[0]) and not row[0].ndim:
            return row[1 + int(row[0])]
        row = tuple(map(self._apart, row))
        key = (name, repr(params), *(_identity(x) for x in row))
        if key not in self._made:
            same = self._alike(row) if name in MATCHED else row
            self._made[key] = (row, primitive.bind(*same, **params))  # the row stays, so that its ids do
        return self._made[key][1]

    def _alike(self, row: Sequence[Any]) -> list[Any]:
        """The elements at the widest shape among them."""
        shape = jnp.broadcast_shapes(*map(jnp.shape, row))
        return [element if jnp.shape(element) == shape else self._copied(element) for element in row]

    def _copied(self, element: Any) -> jax.Array:
        """What all lanes share, once for each of them."""
        return self._once(
            ("copied", _identity(element)), element, lambda: jnp.broadcast_to(element, self.shape)
        )

    def _once(self, key: Any, element: Any, make: Callable[[], jax.Array]) -> jax.Array:
        """What is made of an element, made once; the element stays, so that its id does."""
        if key not in self._made:
            self._made[key] = (element, make())
        return self._made[key][1]

    def _question(self) -> jax.Array:
        """[runs, W] the number of each lane's question."""
        return self._once("question", None, lambda: jax.lax.broadcasted_iota(np.int32, self.shape, 1))

    def _apart(self, element: Any) -> Any:
        """[runs, W] of numbers [W] that are known while tracing, which a kernel cannot hold; others stay."""
        if not (is_known(element) and element.ndim):
            return element
        return self._once(("apart", _identity(element)), element, lambda: self._chosen(element))

    def _chosen(self, numbers: np.ndarray) -> jax.Array:
        """Each question's number: counted up where they are whole and evenly apart, else one by one."""
        if numbers.dtype.kind in "iu" and len(set(np.diff(numbers).tolist())) == 1:  # both wrap around
            return self._question().astype(numbers.dtype) * np.diff(numbers)[0] + numbers[0]
        found = jnp.full(self.shape, numbers[0])
        for i in range(1, len(numbers)):
            found = jnp.where(self._question() == i, numbers[i], found)
        return found

    def _numbered(self, eqn: Any, arrays: Arrays) -> Arrays:
        """``iota``."""
        shape, axis = eqn.params["shape"], eqn.params["dimension"]
        if shape[axis] == RUNS:
            raise NoLanesError("runs are numbered")
        steps = np.arange(held(shape)[axis] * (self.shape[1] if asks(shape[axis]) else 1))
        steps = known_apart(steps.astype(eqn.params["dtype"]), shape[axis : axis + 1], self.shape[1])
        return [np.broadcast_to(steps.reshape((-1,) + (1,) * (len(shape) - axis - 1)), held(shape))]

    def _folded(self, pair: Any, eqn: Any, x: np.ndarray) -> np.ndarray:
        """A reduction as a balanced tree, and across questions; NoLanesError over runs."""
        axes = eqn.params["axes"]
        apart_from_runs(eqn, axes)
        rest = tuple(n for i, n in enumerate(x.shape) if i not in axes)
        parts = rows(np.moveaxis(x, axes, range(len(axes))).reshape((-1, *rest)))
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=False)
            made = [self._each(pair, {}, eqn.outvars[0].aval.dtype, a, b) for a, b in pairs]
            parts = made + parts[len(parts) - len(parts) % 2 :]
        if not any(asks(eqn.invars[0].aval.shape[axis]) for axis in axes):
            return parts[0]
        return filled(rest, (self._across(pair.name, element) for element in parts[0].flat))

    def _across(self, name: str, element: Any) -> Any:
        """An element's numbers of all questions in one; what they share counts for each of them."""
        if name not in ACROSS:
            raise NoLanesError(f"{name} over questions")
        if is_known(element):
            numbers = np.broadcast_to(element, self.shape[1:])[: self.questions]
            return NUMBERS[name].reduce(numbers, dtype=numbers.dtype)
        return self._once(("across", name, _identity(element)), element, lambda: self._reduced(name, element))

    def _reduced(self, name: str, element: jax.Array) -> jax.Array:
        """A kernel reduces numbers only: what is true is 1."""
        reduce, neutral = ACROSS[name]
        numbers = self._copied(element) if jnp.ndim(element) == 0 else element
        numbers = numbers.astype(np.int32) if element.dtype == bool else numbers
        if self.questions < self.shape[1]:
            numbers = jnp.where(self._question() < self.questions, numbers, neutral(numbers.dtype))
        found = jnp.broadcast_to(reduce(numbers, axis=1, keepdims=True), self.shape)
        return found != 0 if element.dtype == bool else found.astype(element.dtype)

    def _running(self, eqn: Any, arrays: Arrays) -> Arrays:
        axis, back = eqn.params["axis"], eqn.params["reverse"]
        apart(eqn, [axis])
        parts = rows(np.moveaxis(arrays[0], axis, 0))[:: -1 if back else 1]
        for i in range(1, len(parts)):
            parts[i] = self._each(jax.lax.add_p, {}, eqn.outvars[0].aval.dtype, parts[i - 1], parts[i])
        return [np.stack(parts[:: -1 if back else 1], axis)]

    def _solution(self, eqn: Any, arrays: Arrays) -> Arrays:
        """Of a system that is solved by a trace of its own (``kernels._linear``)."""
        lengths, traces = eqn.params["const_lengths"], eqn.params["jaxprs"]
        ahead = lengths.matvec + lengths.vecmat
        own = arrays[ahead : ahead + lengths.solve]
        return self(traces.solve, [*own, *arrays[sum(lengths) :]])

    def _branch(self, eqn: Any, arrays: Arrays) -> Arrays:
        """``cond`` on what all runs share; each branch computes for itself."""
        which, *operands = arrays
        branches = eqn.params["branches"]
        if jnp.ndim(which.item()):
            raise NoLanesError("runs or questions take different branches")
        if is_known(which.item()):
            return self(branches[int(which.item())], operands)
        kinds = [var.aval for var in eqn.outvars]

        def taken(branch: Any) -> Callable[[], list[jax.Array]]:
            return lambda: (inside := self._inside())._flat(inside(branch, operands), kinds)

        found = jax.lax.switch(jnp.asarray(which.item()), [taken(branch) for branch in branches])
        return self._unflat(found, kinds)

    def _loop(self, eqn: Any, arrays: Arrays) -> Arrays:
        """``scan``: written out where it asks for that or reads rows, a loop over its carry else."""
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        inner: Any = getattr(body, "jaxpr", body)
        read = sum(a.aval.ndim > b.aval.ndim for a, b in zip(eqn.invars, inner.invars, strict=True))
        stacked = sum(a.aval.ndim > b.aval.ndim for a, b in zip(eqn.outvars, inner.outvars, strict=True))
        carried = len(eqn.outvars) - stacked
        first = len(arrays) - read - carried
        consts, carry, xs = arrays[:first], arrays[first : first + carried], arrays[first + carried :]
        order = range(length)[:: -1 if eqn.params["reverse"] else 1]
        if read or eqn.params["reverse"] or eqn.params["unroll"] >= length:
            found: list[Arrays] = [[] for _ in order]
            for i in order:
                out = self(body, [*consts, *carry, *(rows(x)[i] for x in xs)])
                carry, found[i] = out[:carried], out[carried:]
            return [*carry, *(np.stack(parts) for parts in zip(*found, strict=True))]
        return self._rolled(eqn, body, consts, carry)

    def _rolled(self, eqn: Any, body: Any, consts: Arrays, carry: Arrays) -> Arrays:
        """What a round gives is put into its place among all rounds' by a selection: nothing is indexed."""
        length, kinds = eqn.params["length"], [var.aval for var in eqn.outvars[len(carry) :]]
        empty = [known(np.zeros(held(aval.shape), aval.dtype)) for aval in kinds]

        def keep(inside: Lanes, i: Any, new: Arrays, old: Arrays) -> Arrays:
            pairs = zip(new, map(rows, old), strict=True)
            return [
                np.stack([inside._either(i == j, x, row) for j, row in enumerate(so_far)])
                for x, so_far in pairs
            ]

        carry, stacked = self.loop(body, consts, carry, length, keep, empty, kinds)
        return [*carry, *stacked]

    def loop(
        self,
        body: Any,
        consts: Arrays,
        carry: Arrays,
        length: int,
        keep: Callable[[Lanes, Any, Arrays, Arrays], Arrays],
        kept: Arrays,
        kinds: Sequence[Any],
    ) -> tuple[Arrays, Arrays]:
        """``length`` rounds of a trace (consts, carry) -> (carry, found); what stays the same is not carried.

        Args:
          body: the trace.
          consts: the first of its arguments.
          carry: the others, before the first round.
          length: how many rounds.
          keep: (the lanes of a round, its number, found, what is kept) -> what is kept then.
          kept: what is kept before the first round.
          kinds: its traced shapes and types.

        Returns:
          The carry after the last round, and what is kept.
        """
        inner: Any = getattr(body, "jaxpr", body)
        own = inner.invars[len(consts) :]
        moving = [i for i, var in enumerate(own) if inner.outvars[i] is not var]
        types = [*(own[i].aval for i in moving), *kinds]

        def joined(flat: Sequence[jax.Array]) -> tuple[Arrays, Arrays]:
            both, whole = self._unflat(flat, types), list(carry)
            for i, x in zip(moving, both, strict=False):
                whole[i] = x
            return whole, both[len(moving) :]

        def once(i: Any, flat: list[jax.Array]) -> list[jax.Array]:
            now, old = joined(flat)
            inside = self._inside()
            out = inside(body, [*consts, *now])
            new = keep(inside, i, out[len(carry) :], old)
            return inside._flat([*(out[j] for j in moving), *new], types)

        start = self._flat([*(carry[i] for i in moving), *kept], types)
        return joined(jax.lax.fori_loop(0, length, once, start))

    def _inside(self) -> Lanes:
        """For a loop's body or a branch, whose elements nothing outside may read."""
        return Lanes(self.shape, self.questions, self._made.new_child())

    def _either(self, here: jax.Array, new: np.ndarray, old: np.ndarray) -> np.ndarray:
        pairs = zip(map(self._apart, new.flat), map(self._apart, old.flat), strict=True)
        return filled(new.shape, (jnp.where(here, a, b) for a, b in pairs))

    def stored(self, x: np.ndarray, aval: Any) -> list[jax.Array]:
        """The elements in order, each an array of the type of ``aval``, as loops and branches need them.

        Of shape [runs, W], or () where runs share the array and it has no questions.
        """
        shape = self.shape if RUNS in aval.shape or asked(aval.shape) is not None else ()
        elements = [jnp.asarray(self._apart(element), aval.dtype) for element in x.flat]
        if any(element.ndim > len(shape) for element in elements):
            raise NoLanesError("what runs share is summed over questions")
        return [jnp.broadcast_to(element, shape) for element in elements]

    def _flat(self, arrays: Arrays, kinds: Sequence[Any]) -> list[jax.Array]:
        pairs = zip(arrays, kinds, strict=True)
        return [element for x, aval in pairs for element in self.stored(x, aval)]

    def _unflat(self, flat: Sequence[jax.Array], kinds: Sequence[Any]) -> Arrays:
        rest, shapes = iter(flat), [held(aval.shape) for aval in kinds]
        return [filled(shape, itertools.islice(rest, math.prod(shape))) for shape in shapes]


def _needed(jaxpr: Any) -> list[Any]:
    """The equations on which the results depend, in order."""
    wanted, kept = set(map(id, jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(map(id, eqn.outvars)):
            wanted.update(map(id, eqn.invars))
            kept.append(eqn)
    return kept[::-1]


def _identity(element: Any) -> Any:
    """Equal for elements that hold one and the same number for sure."""
    return (element.dtype.str, element.shape, element.tobytes()) if is_known(element) else id(element)
