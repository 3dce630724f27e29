"""Files that a YAML names as its ``defaults``, as NeMo-RL's launcher lays them under it.

Names that end in .yaml or .yml are paths, relative to the file that has them or absolute, wherever they lead;
Hydra's lists of groups (verl) have none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEPEST = 10
"""Files over files: beyond, they name each other."""


def with_parents(tree: Any, path: Path, load: Callable[[Path], Any]) -> Any:
    """A file's tree over those of the files it names, later ones over earlier ones.

    ``defaults`` stays where a file that it names is not there, so that this can be told.

    Args:
      tree: what the file says.
      path: where it is; names are relative to it.
      load: reads another one's tree; it is asked once for each file.

    Raises:
      ValueError: where files name each other, and for what is wrong in a file, which is named.
    """
    return _over(tree, path, load, {}, 0)


def _over(tree: Any, path: Path, load: Callable[[Path], Any], known: dict[Path, Any], depth: int) -> Any:
    """``with_parents``; ``known`` holds what is read: many may name one file. ``depth``: files over it."""
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
        file = parent.resolve()
        if file not in known:
            known[file] = _over(_loaded(parent, load), parent, load, known, depth + 1)
        base = laid(base, known[file])
    own = tree if len(there) < len(named) else {key: v for key, v in tree.items() if key != "defaults"}
    return laid(base, nested(own))


def _loaded(path: Path, load: Callable[[Path], Any]) -> Any:
    """A parent's options by name; ValueError, with its path, for what is wrong in it."""
    try:
        tree = load(path)
        if tree is None:  # comments alone
            return {}
        if not isinstance(tree, dict):
            raise ValueError(f"it holds a {type(tree).__name__}; options by name are needed")
        return nested(tree)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(str(path)) else f"{path}: {said}") from None


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
    if not isinstance(over, dict):
        return over
    below = base if isinstance(base, dict) and not over.get("_override_") else {}
    return below | {key: laid(below.get(key), value) for key, value in over.items() if key != "_override_"}
