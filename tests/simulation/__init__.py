"""Simulated environment for real controller code: a disk that forgets, a loop with virtual time."""
