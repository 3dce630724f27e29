"""The claims' scripts: what each says about itself, read from its source and its name.

A claim is a file `a05_binary_pairs.py`: letter and number are the claim's, the letter the paper's (D and E:
many sources, each named by its claim). The first line of its docstring is the sentence that is judged, as its
source has it; the rest says where it stands, what the setting is and what would refute it. It may name a
`PRECISION`, and stand `APART`: it takes minutes, and runs only where it, its letter or all is named. It gives
`SIZES`, `simulate(seed, size)`, `check(data, claim)` and `draw(figure, data)`, and may give
`site_table(data)`: rows for the site, each a dict of texts and numbers by the columns' names.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

Size = Literal["smoke", "quick", "full"]

SCRIPTS = Path(__file__).resolve().parent.parent / "claims"
PAPERS = {
    "A": "Vojnovic & Yun, What is the Alignment Objective of GRPO?, arXiv:2502.18548",
    "B": "Fontana et al., On the Hidden Objective Biases of Group-based Reinforcement Learning, "
    "arXiv:2601.05002",
    "C": "Pang, Luo & Jin, TIC-GRPO, arXiv:2508.02833",
    "D": "Who sampled? Users of the libraries, and papers beyond the three; each claim names its own",
    "E": "Rewards, masks, denominators, penalties: users of the libraries, and papers beyond the three; each "
    "claim names its own",
    "F": "What survives a network? Papers beyond the three; each claim names its own",
}
"""What a letter stands for."""
NAME = re.compile(r"([a-z])(\d+)_\w+")


class Refusal(ValueError):
    """A request that has no meaning, found before anything runs."""


@dataclass(frozen=True)
class Script:
    """A claim's file and what it says about itself."""

    id: str
    says: str
    about: str
    paper: str
    precision: str
    apart: bool
    path: Path


def sizes(**numbers: tuple[Any, Any, Any]) -> dict[str, SimpleNamespace]:
    """How much to simulate at each size, from numbers for smoke, quick and full.

    >>> sizes(seeds=(8, 64, 1024), iterations=(50, 500, 500))["quick"].seeds
    64
    """
    for name, given in numbers.items():
        if not isinstance(given, tuple) or len(given) != 3:
            raise ValueError(f"{name} needs three values, for smoke, quick and full; got {given!r}")
    return {
        size: SimpleNamespace(**{name: given[place] for name, given in numbers.items()})
        for place, size in enumerate(get_args(Size))
    }


def claim_order(claim: str) -> tuple[str, list[int], str]:
    """Sorts A2 before A10, and A2.1 between them.

    >>> sorted(["B1", "A10", "A2.1", "A2"], key=claim_order)
    ['A2', 'A2.1', 'A10', 'B1']
    """
    return claim[:1], [int(digits) for digits in re.findall(r"\d+", claim)], claim


def find_scripts(folder: Path = SCRIPTS) -> dict[str, Script]:
    """Every claim in a folder by its id, in order; scripts are read, not imported."""
    scripts: dict[str, Script] = {}
    for path in sorted(folder.glob("[a-z][0-9]*_*.py")):
        script = read_script(path)
        if script.id in scripts:
            raise Refusal(f"{path.name} and {scripts[script.id].path.name} are both {script.id}")
        scripts[script.id] = script
    return dict(sorted(scripts.items(), key=lambda item: claim_order(item[0])))


def read_script(path: Path) -> Script:
    """A claim's id from its file's name, and what its source says about it."""
    name = NAME.fullmatch(path.stem)
    if not name:
        raise Refusal(f"{path.name} is no claim's name; one is a05_binary_pairs.py")
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    sentence, _, about = (ast.get_docstring(tree) or "").partition("\n\n")
    if not sentence.strip():
        raise Refusal(f"{path.name} has no docstring; its first line is the sentence that is judged")
    if "refuted" not in about.lower():
        raise Refusal(f"{path.name} does not say what would refute it")
    precision, apart = _constant(tree, "PRECISION", "float32"), _constant(tree, "APART", False)
    if not isinstance(apart, bool):
        raise Refusal(f"{path.name}: APART is True or False; got {apart!r}")
    if precision not in ("float32", "float64"):
        raise Refusal(f"{path.name}: PRECISION is float32 or float64; got {precision!r}")
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if missing := [needed for needed in ("simulate", "check", "draw") if needed not in defined]:
        raise Refusal(f"{path.name} does not define {', '.join(missing)}")
    letter, number = name.groups()
    says = " ".join(sentence.split())
    paper = PAPERS.get(letter.upper(), "")
    id = f"{letter.upper()}{int(number)}"
    return Script(id, says, about.strip(), paper, precision, apart, path.resolve())


def _constant(tree: ast.Module, name: str, default: Any) -> Any:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if name in names:
                return node.value.value
    return default


MAIN = ("A", "B", "C")
"""Letters of the three papers: what is run if nothing is named."""
ALL = "ALL"


def choose(scripts: dict[str, Script], names: Sequence[str]) -> list[Script]:
    """The claims of these names, upper or lower case, in order and once each.

    A name is a claim's, or a letter for all of its claims, or ``all``; without names they are those of the
    three papers, less what stands apart.
    """
    known = {name.upper(): script for name, script in scripts.items()}
    letters = {name[:1] for name in known}
    wanted: set[str] = set()
    for name in [name.upper() for name in names or MAIN]:
        if name in known:
            wanted.add(name)
        elif name in letters or name == ALL or not names:
            of_name = {claim for claim in known if name == ALL or claim[:1] == name}
            wanted |= of_name if names else {claim for claim in of_name if not known[claim].apart}
        else:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]}?" if near else "there are none here"
            raise Refusal(
                f"unknown claim {name!r}: {hint} The claims are: {', '.join(scripts)}; a letter means all of "
                "its claims, and all means every one"
            )
    return [script for name, script in known.items() if name in wanted]
