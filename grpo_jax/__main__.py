"""``python -m grpo_jax``."""

from grpo_jax.cli import main
from grpo_jax.runtime import start

if __name__ == "__main__":
    start()
    main()
