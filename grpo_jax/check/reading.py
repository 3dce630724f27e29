"""From a file to option names and values, whatever wrote it; nothing of it is ever executed.

YAML and JSON and TOML become one flat mapping with dotted names; of a Python script the keywords of its
configuration's call are read with ``ast``; of a shell script or a command line the ``--flags`` and the
``a.b=c`` overrides (``shell``). What depends on something that is not in the file is named in ``unread``.
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from grpo_jax.check import inheritance, scripts, shell

LARGEST, MOST, DEEPEST = 400_000, 20_000, 40
"""Bytes of a file, entries of a configuration, levels of nesting: beyond, it is none."""
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
SHELL = re.compile(r"(?:^|\s)--[A-Za-z]|^[ \t]*\+{0,2}[A-Za-z_]\w*\.[\w.]*=", re.M)
TABLE = re.compile(r"^[ \t]*\[[\w.\"-]+\][ \t]*(?:#.*)?$", re.M)
"""A flag or an override, as shell scripts have them; the name of a table, as TOML has it."""
INSIDE = re.compile(r"\$\{([^{}]*)\}")


@dataclass(frozen=True)
class Source:
    """What a file says."""

    values: Mapping[str, Any]
    """Dotted name -> value, in the order written."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Name -> why its value is not in the file."""
    hints: frozenset[str] = frozenset()
    """Words of the file that name a library: a module that is run, a class that is called."""


def read(path: str | Path, overrides: Iterable[str] = ()) -> Source:
    """A file's options, with Hydra-style overrides (``a.b=c``) laid over it.

    Args:
      path: the file; "-" is the standard input.
      overrides: ``name=value`` words.

    Raises:
      ValueError: for what is no configuration, with the reason.
      OSError: for a file that cannot be read.
    """
    given = {}
    for word in overrides:
        name, equals, value = word.lstrip("+").partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} is not of the form name=value")
        given[name] = literal(value)
    text, suffix = text_of(path), "" if str(path) == "-" else Path(path).suffix.lower()
    if suffix in (".yaml", ".yml"):
        tree = inheritance.with_parents(_tree(text), Path(path), lambda parent: _tree(text_of(parent)))
        return _flat(tree, "the YAML", given)
    source = parsed(text, suffix)
    values = {**source.values, **given}
    return Source(values, {k: v for k, v in source.unread.items() if k not in values}, source.hints)


def text_of(path: str | Path) -> str:
    """The text of a file, or of the standard input for "-"; ValueError for what is no text of a sane size."""
    if str(path) == "-":
        if sys.stdin is None:
            raise ValueError("the standard input is closed; give a file, or a configuration by < or |")
        raw = sys.stdin.buffer.read(LARGEST + 1)
    else:
        where = Path(path).expanduser()
        if where.exists() and not where.is_file():
            raise ValueError(f"{path} is no file; a configuration, a script, or - for the standard input is")
        with where.open("rb") as file:
            raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(f"{path} holds more than {LARGEST:,} bytes; a configuration is smaller")
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what PowerShell's > writes
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        kind, byte = "UTF-16" if wide else "UTF-8", raw[error.start]
        raise ValueError(f"{path} is no text in {kind}: byte {error.start} is {byte:#x}") from None
    if "\0" in text:
        raise ValueError(f"{path} is no text: it holds zero bytes")
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def parsed(text: str, suffix: str = "") -> Source:
    """The options in a text; its kind by the suffix, or else by what it looks like."""
    kinds = {".json": _json, ".toml": _toml, ".py": _script, ".sh": _shell, ".bash": _shell}
    if suffix in (".yaml", ".yml"):
        return _yaml(text)
    if suffix in kinds:
        return kinds[suffix](text)
    if suffix == ".ipynb":
        raise ValueError("this is a notebook; save it as a script, or paste its configuration into a file")
    if text.lstrip().startswith("{"):
        return _json(text)
    if scripts.CALLED.search(text):
        return _script(text)
    if text.startswith("#!") or SHELL.search(text):
        return _shell(text)
    if TABLE.search(text):
        return _toml(text)
    return _yaml(text)


def _nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes of a tree with its aliases written out, counted before anything is made of them.

    A few lines of aliases can stand for more than a memory holds, and one that holds itself for no end.
    PyYAML takes the last of a key's values and merges in place: keys given twice can only be seen here.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0
        if isinstance(node, yaml.MappingNode):
            _once_each(node)
        parts = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_nodes(part, known) for part in parts)
    if not known[id(node)]:  # still being counted
        raise ValueError(f"nested more than {DEEPEST} deep: an alias stands within what it names")
    if known[id(node)] > 4 * MOST:
        raise ValueError(f"more than {MOST:,} entries with its aliases written out")
    return known[id(node)]


def _once_each(node: yaml.MappingNode) -> None:
    """ConstructorError for a key given twice."""
    seen: set[str] = set()
    for key, _ in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name in seen and name != "<<":
            raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", key.start_mark)
        seen.add(name)


def _yaml(text: str) -> Source:
    return _flat(_tree(text), "the YAML")


def _tree(text: str) -> Any:
    loader = yaml.SafeLoader(text)  # a safe loader: no tag makes an object
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _nodes(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"broken YAML{where}: {what}") from None
    except RecursionError:
        raise ValueError(f"the YAML is nested more than {DEEPEST} deep") from None
    except ValueError as error:  # a date such as 2026-99-99, or too many entries
        raise ValueError(f"broken YAML: {error}") from None


def _json(text: str) -> Source:
    try:
        return _flat(json.loads(text, object_pairs_hook=_once, parse_int=literal), "the JSON")
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON in line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"the JSON is nested more than {DEEPEST} deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError for a name given twice."""
    counts = Counter(name for name, _ in pairs)
    if len(counts) < len(pairs):
        raise ValueError(f"broken JSON: {counts.most_common(1)[0][0]} is given twice")
    return dict(pairs)


def _toml(text: str) -> Source:
    try:
        found = tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"broken TOML: {error}") from None
    except RecursionError:
        raise ValueError(f"the TOML is nested more than {DEEPEST} deep") from None
    return _flat(found, "the TOML")


def _script(text: str) -> Source:
    values, unread, name = scripts.keywords(text)
    return Source(values, unread, frozenset((name,)))


def _shell(text: str) -> Source:
    words, hints = shell.options(text)
    values, unread = {}, {}
    for name, value in words.items():
        if isinstance(value, str) and "$" in value:
            unread[name] = f"its value is {value}, which the script does not say"
        else:
            values[name] = [literal(v) for v in value] if isinstance(value, list) else literal(value)
    return Source(values, unread, hints)


def literal(text: Any) -> Any:
    """A word as the value it stands for, by YAML's rules and with 1e-6 a number; text stays text.

    >>> literal("1e-6"), literal("True"), literal("null"), literal("[1,2]"), literal("low_var_kl")
    (1e-06, True, None, [1, 2], 'low_var_kl')
    """
    if not isinstance(text, str):
        return text
    word = text.strip()
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        return word[1:-1]
    if NUMBER.fullmatch(word):
        number = float(word)
        return int(word) if word.lstrip("+-").isdigit() and abs(number) < 1e300 else number
    if word in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[word]
    if word in ("true", "false", "null", "~") or word[:1] in "[{":
        try:
            return yaml.safe_load(word)
        except (yaml.YAMLError, RecursionError, ValueError):
            return text
    return text


def _flat(tree: Any, what: str, given: Mapping[str, Any] = MappingProxyType({})) -> Source:
    """The options of a tree, ``given`` laid over them before one that names another takes its value."""
    if tree is None:
        raise ValueError(f"{what} is empty")
    if not isinstance(tree, dict):
        raise ValueError(f"{what} holds a {type(tree).__name__}; options by name are needed")
    values: dict[str, Any] = {}
    _walk(tree, "", values, 0)
    values |= given
    unread: dict[str, str] = {}
    for name, value in list(values.items()):
        if value == "???":  # OmegaConf's word for what is still to be given
            del values[name]
        elif isinstance(value, str) and "${" in value:
            found, settled = _interpolated(name, value, values)
            if settled:
                values[name] = found
            else:
                unread[name] = f"its value is {value}, which is not in the file"
                del values[name]
    return Source(values, unread)


def _walk(tree: Any, prefix: str, values: dict[str, Any], depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"the configuration is nested more than {DEEPEST} deep")
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if not name.isprintable():
            raise ValueError(f"an option has the name {name!r}, which no screen shows")
        if name in values:
            raise ValueError(f"{name} is given twice")
        if isinstance(value, dict) and value:
            _walk(value, f"{name}.", values, depth + 1)
        else:
            values[name] = _plain(value)
        if len(values) > MOST:
            raise ValueError(f"the configuration has more than {MOST:,} entries")


def _plain(value: Any) -> Any:
    """Numbers that YAML takes for text (1e-6) are numbers; a list is not looked into further than this."""
    if isinstance(value, str):
        return literal(value) if NUMBER.fullmatch(value.strip()) else value
    if isinstance(value, list) and len(value) <= MOST:
        return [literal(v) if isinstance(v, str) and NUMBER.fullmatch(v.strip()) else v for v in value]
    return value


def _interpolated(name: str, text: str, values: Mapping[str, Any], depth: int = 0) -> tuple[Any, bool]:
    """(value, True) of ``${a.b}`` or ``${oc.select:a.b,default}``; (text, False) where it is not at hand."""
    match = INSIDE.fullmatch(text.strip())
    if match is None or depth > DEEPEST:
        return text, False
    path, _, default = match[1].removeprefix("oc.select:").partition(",")
    if path.startswith("."):
        path = name.rpartition(".")[0] + path
    if path in values:
        found = values[path]
        if isinstance(found, str) and "${" in found:
            return _interpolated(path, found, values, depth + 1)
        return found, True
    return (literal(default), True) if default else (text, False)


def shown(value: Any) -> str:
    """A value as a line of text, cut where it is long."""
    said = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
