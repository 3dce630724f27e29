"""The command line: ``python -m grpo_jax``."""

from grpo_jax.cli import checking
from grpo_jax.cli.commands import main

__all__ = ["checking", "main"]
