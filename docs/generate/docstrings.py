"""What griffe does not see: examples outside a section of their own, and that a `part` is a dataclass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>>.*(?:\n(?! *$).*)*", re.MULTILINE)
FIELDS = ("number", "static", "field")


class Docstrings(griffe.Extension):
    """Examples become code, and parts get the signature that they are called with."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Once everything is read."""
        for found in _all(pkg):
            if found.docstring:
                text = EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", found.docstring.value)
                found.docstring.value = text
            if isinstance(found, griffe.Class) and _is_part(found) and "__init__" not in found.members:
                found.set_member("__init__", _init(found))


def _all(found: griffe.Object) -> Iterator[griffe.Object]:
    yield found
    for member in list(found.members.values()):
        if isinstance(member, griffe.Object):  # a name imported from elsewhere is an alias, and read there
            yield from _all(member)


def _is_part(found: griffe.Class) -> bool:
    return any(str(mark.value).rpartition(".")[2] == "part" for mark in found.decorators)


def _init(found: griffe.Class) -> griffe.Function:
    """A part takes its fields by keyword, those of the parts that it extends first."""
    owners = [owner for owner in reversed(found.mro()) if _is_part(owner)] + [found]
    fields = {member.name: member for owner in owners for member in _fields(owner)}
    kind = griffe.ParameterKind.keyword_only
    taken = [
        griffe.Parameter(name, annotation=field.annotation, kind=kind, default=_default(field.value))
        for name, field in fields.items()
    ]
    self_ = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    return griffe.Function("__init__", parameters=griffe.Parameters(self_, *taken), parent=found)


def _fields(owner: griffe.Class) -> Iterator[griffe.Attribute]:
    for member in owner.members.values():
        own = {"instance-attribute", "property"} & set(member.labels) == {"instance-attribute"}
        if own and isinstance(member, griffe.Attribute) and member.annotation is not None:
            yield member


def _default(value: str | griffe.Expr | None) -> str | griffe.Expr | None:
    """What stands as the field's default; None where it must be given."""
    if not isinstance(value, griffe.ExprCall) or str(value.function).rpartition(".")[2] not in FIELDS:
        return value
    for given in value.arguments:
        if not isinstance(given, griffe.ExprKeyword):
            return given
        if given.name == "default":
            return given.value
    return None
