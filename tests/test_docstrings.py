"""A public name that takes or returns arrays says in its documentation of which shape they are."""

import importlib
import inspect
import pkgutil
import re

import pytest

import grpo_jax as gj

SHAPE = re.compile(
    r"\[(?!([ABC]|\d[\d\s.,]*)\])[^\]\n]+\]"  # [P, N, T], [...], [contexts, actions]; not [B], [0, 1]
    r"|\b([Ss]calars?|[Ss]haped?|[Ss]hapes|[Ee]lementwise|[Ee]lement by element|[Bb]roadcasts?)\b"
)
ARRAYS = re.compile(r"\b(Array|ArrayLike|ndarray|Params|Scores|Rewards)\b")


def modules():
    """Every public module of the package."""
    for info in pkgutil.walk_packages(gj.__path__, "grpo_jax."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            yield importlib.import_module(info.name)


def holds_arrays(function):
    """Whether the function is annotated to take or return arrays."""
    return any(ARRAYS.search(str(kind)) for kind in getattr(function, "__annotations__", {}).values())


def functions(holder, module):
    """Public functions that stand in a module or a class, with those of its properties."""
    for name, value in vars(holder).items():
        function = (
            value.fget if isinstance(value, property) else inspect.unwrap(value) if callable(value) else None
        )
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__ == module:
            yield name, function


def of_modules():
    for module in modules():
        for name, function in functions(module, module.__name__):
            if holds_arrays(function):
                yield f"{module.__name__}.{name}", function


def of_classes():
    """Methods and properties of the classes at the top of the package."""
    for top in gj.__all__:
        kind = getattr(gj, top)
        if inspect.isclass(kind):
            for name, function in functions(kind, kind.__module__):
                if holds_arrays(function):
                    yield f"grpo_jax.{top}.{name}", function


NAMED = {**dict(of_modules()), **dict(of_classes())}


def test_names_are_found():
    assert len(NAMED) > 200
    assert {"grpo_jax.surrogate.advantages", "grpo_jax.theory.stationary.stationary"} <= set(NAMED)
    assert "grpo_jax.ActionPolicy.sample" in NAMED


@pytest.mark.parametrize("name", NAMED)
def test_shapes_are_told(name):
    told = inspect.getdoc(NAMED[name]) or ""
    assert SHAPE.search(told), f"{name} takes or returns arrays; its documentation gives no shape: {told!r}"


@pytest.mark.parametrize("name", [name for name in gj.__all__ if not name.startswith("_")])
def test_every_name_at_the_top_is_documented(name):
    assert (inspect.getdoc(getattr(gj, name)) or "").strip()


@pytest.mark.parametrize(
    "told", ["The mean of x.", "Sorted (ascending).", "[A], (11)", "Lies in [0, 1].", ""]
)
def test_words_are_no_shape(told):
    assert not SHAPE.search(told)
