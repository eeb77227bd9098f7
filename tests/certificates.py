"""Certificates for tests of TLS, made with the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path

_FRESH_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """A certificate authority in ``directory``. Files are named as libnbd looks for them."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.certificate = directory / "ca-cert.pem"
        self._openssl("req", "-x509", *_FRESH_KEY, "-days", "2", "-subj", "/CN=test authority",
                      "-keyout", "ca-key.pem", "-out", "ca-cert.pem")  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)

    def issue(self, name: str, alternatives: str = "") -> tuple[Path, Path]:
        """Make and sign a certificate for ``name`` (default alternative: DNS:name); returns certificate and key."""
        self._openssl("req", *_FRESH_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}-key.pem", "-out", f"{name}.csr")
        (self.directory / "extensions").write_text(f"subjectAltName={alternatives or f'DNS:{name}'}\n")
        certificate = f"{name}-cert.pem"
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem",
                      "-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", certificate)  # fmt: skip
        return self.directory / certificate, self.directory / f"{name}-key.pem"
