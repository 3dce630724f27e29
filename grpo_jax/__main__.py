"""``python -m grpo_jax``."""

from grpo_jax.cli import main

if __name__ == "__main__":
    main()
