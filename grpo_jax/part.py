"""Parts: small frozen records whose numbers are traced and whose kinds are structure.

A configuration is a tree of parts. Every number in it is a pytree leaf: it may be traced, swept by its path
(``method.gain.high``) or given one value per run. Everything else (which part stands in a slot, integers that
set shapes, names) is tree structure: changing it compiles another program.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import hashlib
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.bounds import check_bound, is_concrete, may_be_number, whole

C = TypeVar("C")
Swept = Sequence[Mapping[str, np.ndarray]]
"""What a sweep puts into a configuration, a mapping for each dimension: dotted path -> values [n, ...]."""


def number(
    default: Any = dataclasses.MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    nonfinite: bool = False,
    integer: bool = False,
    rank: int = 0,
) -> Any:
    """A traced leaf that must lie in [low, high] without its open ends and, unless ``nonfinite``, be finite.

    ``rank`` is its number of axes before runs: 0 a number, 2 a table. ``integer``: only whole numbers count.
    """
    bound = {
        "low": low, "high": high, "open_low": open_low, "open_high": open_high, "nonfinite": nonfinite,
        "integer": integer,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata={"bound": bound, "rank": rank})


def static(default: Any = dataclasses.MISSING, *, low: int | None = None) -> Any:
    """A field that is structure, not a leaf: shapes, counts, switches. ``low`` is its least allowed value."""
    return dataclasses.field(default=default, metadata={"static": True, "low": low})


@dataclass_transform(kw_only_default=True, frozen_default=True)
def part(cls: type[C]) -> type[C]:
    """Make a class a part: a frozen keyword-only dataclass registered as a pytree.

    Bounds are checked where a part is written down. Where JAX rebuilds one it may hold anything: tracers,
    gradients of either sign, axes to map over.
    """
    check = getattr(cls, "check", None)
    own_init = "__init__" in vars(cls)

    def __post_init__(self: Any) -> None:
        for field, value in _fields(self):
            if "bound" in field.metadata and isinstance(value, (list, tuple)):
                value = _as_array(f"{type(self).__name__}.{field.name}", value)
                object.__setattr__(self, field.name, value)
            _check_field(type(self).__name__, field, value)
        if check is not None and all(is_concrete(leaf) for leaf in _leaves(self)):
            check(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    if not own_init:
        _explain_keywords(made)
    _register(made)
    return made


def _explain_keywords(cls: Any) -> None:
    """Let the constructor name the right keyword near an unknown one; a right call pays nothing."""
    names = [field.name for field in dataclasses.fields(cls)]
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **given: Any) -> None:
        try:
            init(self, *args, **given)
        except TypeError:
            unknown = [name for name in given if name not in names]
            if args:
                takes = ", ".join(names) or "none"
                raise TypeError(f"{cls.__name__} takes keywords only: {takes}") from None
            if unknown:
                raise TypeError(
                    f"{cls.__name__} has no keyword {unknown[0]!r}; {nearest(unknown[0], names)}"
                ) from None
            raise

    cls.__init__ = __init__


def _register(cls: type) -> None:
    fields = dataclasses.fields(cls)
    data = tuple(f.name for f in fields if not f.metadata.get("static"))
    meta = tuple(f.name for f in fields if f.metadata.get("static"))

    def flatten(obj: Any) -> tuple[tuple, tuple]:
        return tuple(getattr(obj, name) for name in data), tuple(getattr(obj, name) for name in meta)

    def flatten_with_keys(obj: Any) -> tuple[tuple, tuple]:
        children, structure = flatten(obj)
        return tuple(zip(map(jax.tree_util.GetAttrKey, data), children, strict=True)), structure

    def unflatten(structure: tuple, children: Iterable[Any]) -> Any:
        made: Any = object.__new__(cls)
        for name, value in zip(data + meta, (*children, *structure), strict=True):
            object.__setattr__(made, name, value)
        return made

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def _fields(obj: Any) -> Iterator[tuple[dataclasses.Field, Any]]:
    return ((f, getattr(obj, f.name)) for f in dataclasses.fields(obj))


def _leaves(tree: Any) -> list[Any]:
    try:
        return jax.tree.leaves(tree)
    except ValueError:  # JAX sorts them
        kind = type(tree).__name__
        raise TypeError(
            f"{kind} holds a mapping whose keys have no order; let all of them be strings"
        ) from None


ENTRIES = (numbers.Real, np.bool_, np.ndarray, jax.Array)
"""What a list that stands for a table may hold; tracers are arrays."""


def _as_array(name: str, value: Any) -> Any:
    """Nested lists as an array: one leaf, not many."""
    leaves = jax.tree.leaves(value, is_leaf=lambda leaf: leaf is None)  # which JAX would leave out
    wrong = [leaf for leaf in leaves if not isinstance(leaf, ENTRIES)]
    if wrong:
        raise TypeError(f"{name} holds {wrong[0]!r}; it takes numbers")
    if not all(is_concrete(leaf) for leaf in leaves):
        return jnp.asarray(value)
    try:
        return np.asarray(value, float)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is ragged; it must be a rectangular array of numbers") from error


def takes_none(field: dataclasses.Field) -> bool:
    """Whether a field's declared type has room for None."""
    return any(word in str(field.type) for word in ("None", "Any", "Optional"))


def _check_field(owner: str, field: dataclasses.Field, value: Any) -> None:
    name = f"{owner}.{field.name}"
    low = field.metadata.get("low")
    if low is not None and not (value is None and takes_none(field)):
        whole(name, value, low)
        if value >= 2**31:
            raise ValueError(f"{name} is {value}; it must be below 2^31")
    elif field.metadata.get("static"):
        _check_hashable(name, value)
    bound = field.metadata.get("bound")
    if bound is None or (value is None and takes_none(field)):
        return
    if not may_be_number(value, field.metadata["rank"]):
        raise TypeError(f"{name} is {value!r}; it takes a number")
    if not field.metadata["rank"] and np.size(value) == 0:
        raise ValueError(f"{name} is empty; it takes a number")
    if is_concrete(value):
        check_bound(name, value, **bound)


def _check_hashable(name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{name} is a {type(value).__name__}: what is structure must be hashable (a tuple instead of a "
            "list or an array); declare an array of numbers number(rank=...)"
        ) from None


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The sentence that ends an unknown-name error: the nearest right names, else all of them.

    Near are names spelt alike, those with an equal last part, and those whose last part ``name`` abbreviates.

    >>> nearest("lr", ["learning_rate", "b1", "b2"])
    'did you mean learning_rate?'
    """
    allowed = sorted(allowed)
    tail = name.rsplit(".", 1)[-1]
    tails = [a for a in allowed if a.rsplit(".", 1)[-1] == tail]
    short = [a for a in allowed if _abbreviates(tail, a.rsplit(".", 1)[-1])]
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    found = list(dict.fromkeys(tails + short + close))
    return f"did you mean {', '.join(found)}?" if found else f"known: {', '.join(allowed)}"


def _abbreviates(short: str, long: str) -> bool:
    """lr for learning_rate, eps for epsilon and epsilon for eps: initials of words, or a beginning."""
    initials = "".join(word[:1] for word in long.split("_"))
    begins = min(len(short), len(long)) > 2 and (long.startswith(short) or short.startswith(long))
    return begins or (len(initials) > 1 and short == initials)


def aligned(tree: C) -> C:
    """The tree with a trailing axis of one on every table that all runs share, so that it meets [..., R]."""
    if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        return tuple(aligned(value) for value in tree)  # type: ignore[return-value]
    if not dataclasses.is_dataclass(tree) or isinstance(tree, type):
        return tree
    changed = {}
    for field, value in _fields(tree):
        rank = field.metadata.get("rank", 0)
        if rank and value is not None and np.ndim(value) == rank:
            changed[field.name] = jnp.asarray(value)[..., None]
        elif not field.metadata.get("static"):
            changed[field.name] = aligned(value)
    return dataclasses.replace(tree, **changed)  # type: ignore[type-var, return-value]


def declared(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any, int]]:
    """(dotted path, value, rank) of every number that a part declares and that is given."""
    if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        for index, value in enumerate(tree):
            yield from declared(value, f"{prefix}{index}.")
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field, value in _fields(tree):
            if dataclasses.is_dataclass(value) or isinstance(value, tuple):
                yield from declared(value, f"{prefix}{field.name}.")
            elif "bound" in field.metadata and value is not None:
                yield f"{prefix}{field.name}", value, field.metadata["rank"]


def leaf_paths(tree: Any) -> dict[str, Any]:
    """Dotted path -> leaf, for every traced number of a configuration."""
    _leaves(tree)
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(_key(k) for k in path): leaf for path, leaf in flat}


def static_paths(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value, for every kind: parts in their slots and static fields."""
    found: dict[str, Any] = {}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        items = [(f.name, v, bool(f.metadata.get("static"))) for f, v in _fields(tree)]
    elif isinstance(tree, tuple):
        items = [(str(i), v, False) for i, v in enumerate(tree)]
    else:
        return found
    for name, value, is_static in items:
        path = f"{prefix}{name}"
        if is_static or dataclasses.is_dataclass(value) or value is None or isinstance(value, tuple):
            found[path] = value
        if not is_static:
            found |= static_paths(value, f"{path}.")
    return found


LISTED = 256
"""The largest array that a description lists; of larger ones (a network's weights) it gives a digest."""


def describe(tree: Any) -> Any:
    """The configuration as JSON-ready nested dictionaries: {"kind": class, field: value, ...}.

    An array of more than ``LISTED`` numbers is its shape, its type and the SHA-256 of its bytes.
    """
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {"kind": type(tree).__name__} | {field.name: describe(value) for field, value in _fields(tree)}
    if isinstance(tree, Mapping):
        return {str(key): describe(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return [describe(value) for value in tree]
    if isinstance(tree, enum.Enum):
        return tree.name
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, (np.ndarray, jax.Array)):
        key = jnp.issubdtype(tree.dtype, jax.dtypes.prng_key)
        listed = np.asarray(jax.random.key_data(tree) if key else tree)
        if listed.size > LISTED:
            digest = hashlib.sha256(np.ascontiguousarray(listed).tobytes()).hexdigest()
            return {"kind": "array", "shape": list(listed.shape), "type": str(listed.dtype), "sha256": digest}
        return listed.tolist() if listed.dtype.kind in "biufU" else describe(listed.tolist())
    if isinstance(tree, (np.bool_, np.integer, np.floating)):
        return tree.item()
    if isinstance(tree, (numbers.Number, np.generic)):
        return str(tree)
    name = getattr(tree, "__qualname__", None)
    return name if isinstance(name, str) else type(tree).__name__


def field_at(tree: Any, path: str) -> tuple[Any, dataclasses.Field | None]:
    """The part that holds what stands at a dotted path, and its field there (None where it is no field)."""
    above, _, name = path.rpartition(".")
    for key in above.split(".") if above else ():
        if isinstance(tree, Mapping):
            tree = tree[key]
        else:
            tree = getattr(tree, key) if hasattr(tree, key) else tree[int(key)]
    fields = dataclasses.fields(tree) if dataclasses.is_dataclass(tree) else ()
    return tree, next((field for field in fields if field.name == name), None)


def _key(entry: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def put(tree: Any, path: str, value: Any) -> Any:
    """A copy of the configuration with ``value`` at the dotted path (leaf, static field or whole part)."""
    head, _, rest = path.partition(".")
    if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        index = int(head)
        return tree[:index] + (put(tree[index], rest, value) if rest else value,) + tree[index + 1 :]
    names = [f.name for f in dataclasses.fields(tree)] if dataclasses.is_dataclass(tree) else []
    if head not in names:
        raise KeyError(f"{type(tree).__name__} has no field {head!r}; {nearest(head, names)}")
    return dataclasses.replace(tree, **{head: put(getattr(tree, head), rest, value) if rest else value})


def put_all(tree: C, values: Mapping[str, Any]) -> C:
    """``put`` for several paths."""
    for path, value in values.items():
        tree = put(tree, path, value)
    return tree


def substituted(tree: C, values: Mapping[str, Any]) -> C:
    """The tree with other numbers at these dotted paths, unchecked: tracers, or runs behind."""
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [values.get(".".join(_key(k) for k in path), leaf) for path, leaf in flat]
    return jax.tree.unflatten(structure, leaves)


def per_run(tree: Any) -> dict[str, np.ndarray]:
    """Dotted path -> [R, ...], for the declared numbers at hand that are given one per run."""
    return {
        path: np.moveaxis(np.asarray(value), -1, 0)
        for path, value, rank in declared(tree)
        if is_concrete(value) and np.ndim(value) == rank + 1
    }


def subparts(tree: Any) -> Iterator[Any]:
    """The part itself and every part below it."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        yield tree
        for _, value in _fields(tree):
            yield from subparts(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from subparts(value)


def outside(tree: Any) -> list[str]:
    """Names of what comes from outside this package: parts, and functions held by parts of this package."""
    found = []
    for sub in subparts(tree):
        if not type(sub).__module__.startswith("grpo_jax."):
            found.append(type(sub).__name__)
            continue
        for field, value in _fields(sub):
            foreign = not str(getattr(value, "__module__", "")).startswith("grpo_jax.")
            if callable(value) and field.metadata.get("static") and foreign:
                found.append(f"{type(sub).__name__}.{field.name}")
    return list(dict.fromkeys(found))


def at_hand(tree: Any) -> bool:
    """Whether every number is known, rather than traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
