"""The options in a shell script or a command line: ``--flag value`` and ``a.b=c``; nothing is executed.

Variables that the script itself assigns are put in, with ``${NAME:-default}`` and whole-number arithmetic
``$((...))``; what else begins with a dollar sign stays as it is.
"""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

NAME = r"[A-Za-z_]\w*"
ASSIGNED = re.compile(rf"(?:export\s+|declare\s+|local\s+)?({NAME})=(.*)", re.S)
OVERRIDE = re.compile(r"\+{0,2}([A-Za-z_]\w*[.@/][\w.@/-]*)=(.*)", re.S)
VARIABLE = re.compile(rf"\$\{{({NAME}|\d)(?::?[-=]([^{{}}]*))?\}}|\$({NAME})")
SUM = re.compile(r"\$\(\(([^()$]*(?:\([^()$]*\)[^()$]*)*)\)\)")
KEYWORDS = ("export", "local", "declare")
SPAN = 200
"""Lines that one quotation may span."""
STOPS = frozenset((";", "&&", "||", "|", "&", "2>&1", ">", ">>", "<", ")"))
MODULE = re.compile(r"\b(openrlhf|verl|trl|areal|prime_rl|open_instruct|nemo_rl)\b")
OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.floordiv,
        ast.Mod: operator.mod,
    }
)


def options(text: str) -> tuple[dict[str, Any], frozenset[str]]:
    """(name -> word, list of words, or True for a bare flag; modules of libraries that are named).

    >>> options("B=4\\npython -m openrlhf.cli.train --n $((B * 2)) --a.b 1 2 --on x.y=${B}")[0]
    {'n': '8', 'a.b': ['1', '2'], 'on': True, 'x.y': '4'}
    """
    known: dict[str, str] = {}
    found: dict[str, Any] = {}
    hints: set[str] = set()
    for words in _commands(re.sub(r"\\[ \t]*\r?\n", " ", text)):
        if words and all(
            ASSIGNED.fullmatch(word) or word in ("export", "local", "declare") for word in words
        ):
            for word in words:
                match = ASSIGNED.fullmatch(word)
                if match is not None:
                    known[match[1]] = expanded(match[2], known)
            continue
        _line(words, known, found, hints)
    return found, frozenset(hints)


def _commands(text: str) -> Iterator[list[str]]:
    """The words of each line, or of the lines that one quotation spans."""
    lines = text.splitlines()
    place, spanning = 0, SPAN
    while place < len(lines):
        for end in range(place + 1, min(place + spanning, len(lines)) + 1):
            words = _words("\n".join(lines[place:end]))
            if words is not None:
                break
        else:  # a quotation that nothing ends: prose, or a here-document
            words, end, spanning = [], place + 1, 1
        yield words
        place = end


def _words(line: str) -> list[str] | None:
    """None where a quotation is open."""
    line = re.sub(r"\$\(\(.{0,200}?\)\)", lambda match: re.sub(r"\s", "", match[0]), line)
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return None


def _line(words: list[str], known: Mapping[str, str], found: dict[str, Any], hints: set[str]) -> None:
    flag: str | None = None
    split = [_words(expanded(w, known)) if VARIABLE.fullmatch(w) else [expanded(w, known)] for w in words]
    for word in (word for some in split for word in some or ()):
        override = OVERRIDE.fullmatch(word)
        if word in STOPS:
            flag = None
        elif re.match(r"--[A-Za-z]", word):
            name, equals, value = word[2:].partition("=")
            flag = None if equals else name
            found[name] = value if equals else True
        elif override is not None:
            found[override[1]], flag = override[2], None
        elif flag is not None:
            held = found[flag]
            found[flag] = word if held is True else [*(held if isinstance(held, list) else [held]), word]
        else:
            hints.update(MODULE.findall(word))


def expanded(word: str, known: Mapping[str, str]) -> str:
    """A word with the script's own variables and sums put in."""

    def variable(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        return known.get(name, match[0] if default is None else default)

    for _ in range(8):  # a value may name other variables
        before, word = word, VARIABLE.sub(variable, word)
        word = SUM.sub(lambda match: _sum(match, known), word)
        if word == before or len(word) > 10_000:
            break
    return word


def _sum(match: re.Match[str], known: Mapping[str, str]) -> str:
    text = re.sub(rf"\b{NAME}\b", lambda m: known.get(m[0], m[0]), match[1])
    try:
        return str(_number(ast.parse(text.strip(), mode="eval").body))
    except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError):
        return match[0]


def _number(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_number(node.left), _number(node.right))
    raise ValueError("no whole number")
