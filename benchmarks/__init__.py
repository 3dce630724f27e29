"""Updates per second of one GRPO sweep, written six ways, after a proof that all compute the same thing."""
