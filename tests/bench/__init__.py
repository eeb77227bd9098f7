"""Benchmarks: this system and public NBD servers, measured with the same client in the same run."""
