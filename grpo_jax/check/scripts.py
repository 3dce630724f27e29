"""The keywords of a configuration's call in a Python script, read with ``ast`` and never executed."""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

CALLED = re.compile(r"\b(GRPOConfig|RLOOConfig|GMPOConfig)\s*\(")
"""TRL's configuration classes; ``loss_type`` is the trainer's where a class has one of its own."""
TRAINERS: Mapping[str, str] = MappingProxyType({"RLOOConfig": "rloo", "GMPOConfig": "gmpo"})
CONFIGS = ("GRPOConfig", *TRAINERS)
OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
    }
)


def keywords(text: str) -> tuple[dict[str, Any], dict[str, str], str]:
    """(keyword -> value, keyword -> why it is unread, name of the class) of the one configuration called.

    Constants, arithmetic on them, and names that are assigned once, at the top of the script, have values;
    whatever else stands there is named as unread.

    Raises:
      ValueError: for a script that is not Python, or calls no configuration, or several.

    >>> keywords("b = 0.04\\nargs = GRPOConfig(beta=b, use_vllm=True)")[0]
    {'beta': 0.04, 'use_vllm': True}
    """
    deep = "no Python that can be read: it is nested too deep"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of the script's own strings
            tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"no Python that can be read: {error.msg} in line {error.lineno}") from None
    except (RecursionError, MemoryError, ValueError):
        raise ValueError(deep) from None
    try:
        return _called(tree)
    except RecursionError:
        raise ValueError(deep) from None


def _called(tree: ast.Module) -> tuple[dict[str, Any], dict[str, str], str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node.func) in CONFIGS]
    if not calls:
        raise ValueError(
            f"the script calls none of {', '.join(CONFIGS)}(...); if its options are a command line's, give "
            "that: a .sh file, or - for the standard input"
        )
    if len(calls) > 1:
        lines = ", ".join(str(call.lineno) for call in calls)
        raise ValueError(f"the script makes {len(calls)} configurations (lines {lines}); paste one of them")
    call, known = calls[0], _assigned(tree)
    name = _name(call.func)
    values: dict[str, Any] = {}
    unread: dict[str, str] = {}
    for word in call.keywords:
        if word.arg is None:
            unread[f"**{ast.unparse(word.value)}"] = "keywords that are made where the script runs"
            continue
        if word.arg in values.keys() | unread.keys():
            raise ValueError(f"no Python that can be read: {word.arg} is given twice in line {word.lineno}")
        try:
            values[word.arg] = _value(word.value, known)
        except (ValueError, TypeError, ArithmeticError):
            unread[word.arg] = (
                f"its value is {ast.unparse(word.value)[:60]}, which only the running script says"
            )
    if call.args:
        unread["positional arguments"] = "only keywords are read"
    if name in TRAINERS:
        values.setdefault("loss_type", TRAINERS[name])
    return values, unread, name


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _assigned(tree: ast.Module) -> dict[str, ast.expr]:
    """Names that are bound once, at the top of the script."""
    bound = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and bound.count(node.targets[0].id) == 1
    }


def _value(node: ast.expr, known: Mapping[str, ast.expr], depth: int = 0) -> Any:
    if depth > 20:
        raise ValueError("names that name each other")
    if isinstance(node, ast.Name) and node.id in known:
        return _value(known[node.id], known, depth + 1)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        sides = [_value(side, known, depth + 1) for side in (node.left, node.right)]
        if not all(isinstance(side, (int, float)) for side in sides):
            raise ValueError("arithmetic on something else than numbers")
        return OPERATORS[type(node.op)](*sides)
    return ast.literal_eval(node)
