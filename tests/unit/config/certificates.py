"""Certificates for tests of the configuration."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(directory: Path, name: str) -> None:
    """Make ``name``.pem, a certificate that signs itself, and ``name``.key."""
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = ["-keyout", f"{directory}/{name}.key", "-out", f"{directory}/{name}.pem", "-subj", f"/CN={name}"]
    subprocess.run([*make, *files], check=True, capture_output=True)
