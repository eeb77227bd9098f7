"""Fuzzing: what may come from outside, in any form. `python -m tests.fuzz` runs it for long, the suite for a moment.

A target is a function that takes bytes and makes anything of them. Its contract: the input is accepted or refused as
documented, and nothing else happens; an exception is a finding.
"""
