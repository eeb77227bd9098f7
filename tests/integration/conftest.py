"""What the report of a run with real controllers says first: which random moments it looks at."""

from __future__ import annotations

import os


def pytest_report_header() -> str:
    """Say which seeds the tests use; REMOTECOPY_SEED=n looks at one, REMOTECOPY_SEEDS_FROM=n at those from n on."""
    if seed := os.environ.get("REMOTECOPY_SEED"):
        return f"seeds: only {seed}"
    return f"seeds: from {os.environ.get('REMOTECOPY_SEEDS_FROM', '1')} on"
