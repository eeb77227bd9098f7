"""Simulated hosts: workloads on real client libraries, and checkers of what a copy shows.

Owns: the hosts' side of every drill. Never: imports anything of a controller; it is reached over its ports.
"""
