"""Planted defects: does what judges the controllers find what it is there to find?

Owns: a list of small mistakes, each an exact edit of the source (`storage`, `transfer`, `takeover`), planting one
in a copy of the tree (`plant`), and what hunts for it (`hunt`).
Never: changes the tree it is run from.

`python -m tests.simulation.defects` plants them all and prints the table; `make defects` does the same.
"""
