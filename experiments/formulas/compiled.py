"""Programs that run once and briefly: what they cost is to compile them."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def light(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` where on a CPU the compiler is told not to optimise: half the time; rounding may differ."""

    @functools.cache
    def made() -> Callable[..., Any]:
        level = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(function, compiler_options=level, **options)

    return functools.wraps(function)(lambda *args, **kwargs: made()(*args, **kwargs))
