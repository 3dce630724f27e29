"""Files that a YAML names as its ``defaults``, as NeMo-RL's launcher lays them under it.

Only files beside it that end in .yaml or .yml are: Hydra's lists of groups (verl) name none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEPEST = 10
"""Files over files: beyond, they name each other."""


def with_parents(tree: Any, path: Path, load: Callable[[Path], Any], depth: int = 0) -> Any:
    """A file's tree over those of the files it names, later ones over earlier ones.

    ``defaults`` stays where a file that it names is not there, so that this can be told.

    Args:
      tree: what the file says.
      path: where it is; names are relative to it.
      load: reads another one's tree.
      depth: files over this one.

    Raises:
      ValueError: where files name each other.
    """
    if not isinstance(tree, dict) or "defaults" not in tree:
        return tree
    if depth > DEEPEST:
        raise ValueError(f"{path.name}: more than {DEEPEST} files lie under each other by their defaults")
    named = tree["defaults"] if isinstance(tree["defaults"], list) else [tree["defaults"]]
    if not all(isinstance(name, str) and name.endswith((".yaml", ".yml")) for name in named):
        return tree
    there = [path.parent / name for name in named if (path.parent / name).is_file()]
    base: dict[Any, Any] = {}
    for parent in there:
        base = laid(base, nested(with_parents(load(parent), parent, load, depth + 1)))
    own = tree if len(there) < len(named) else {key: v for key, v in tree.items() if key != "defaults"}
    return laid(base, nested(own))


def nested(tree: Any) -> Any:
    """``a.b: 1`` as ``a: {b: 1}``, so that it takes the place of what lies under it; ValueError for both."""
    if not isinstance(tree, dict):
        return tree
    whole: dict[Any, Any] = {}
    for key, value in tree.items():
        first, dot, rest = str(key).partition(".")
        name, inner = (first, {rest: value}) if dot else (key, value)
        if name not in whole:
            whole[name] = inner
        elif isinstance(whole[name], dict) and isinstance(inner, dict) and not whole[name].keys() & inner:
            whole[name] = whole[name] | inner
        else:
            raise ValueError(f"{key} is given twice")
    return {key: nested(value) for key, value in whole.items()}


def laid(base: Any, over: Any) -> Any:
    """One tree over another: mappings are merged, unless ``_override_`` says that this one replaces."""
    if not isinstance(base, dict) or not isinstance(over, dict) or over.get("_override_"):
        return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = laid(base[key], value) if key in base else value
    return merged
