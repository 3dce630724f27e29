"""One module an implementation."""
