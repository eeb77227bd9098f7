"""TLS of the host port: the context that new connections get, and the names in a client's certificate.

Owns: which protocol versions and certificates count, and taking changed files into use.
Never: decides when TLS starts (negotiation.py), or what a name may open (model/access.py).

Pre-shared keys, the document's other way, need callbacks that the ssl module has from Python 3.13 on.

Source: proto.md, "TLS support".
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any, Final

from controllerd.model.access import fold
from controllerd.model.errors import Conflict
from controllerd.targets.nbd.settings import ClientCertificates, Tls

_VERIFY: Final[dict[ClientCertificates, ssl.VerifyMode]] = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_NAME_KINDS: Final = frozenset({"DNS", "email", "URI", "IP Address"})


def make_context(tls: Tls) -> ssl.SSLContext | None:
    """Return a context with the files as they are now; None if TLS is off.

    Raises:
        Conflict: a file cannot be read or used.
    """
    if tls.mode == "off":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A resumed session would go on with a certificate that a new CA file no longer trusts.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    context.verify_mode = _VERIFY[tls.client_certificates]
    file = tls.certificate
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
        if tls.ca:
            file = tls.ca
            context.load_verify_locations(tls.ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise Conflict(f"nbd: TLS: {file}: {getattr(error, 'reason', None) or error}", file=file) from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL asks at the terminal


def names_of(certificate: dict[str, Any] | None) -> frozenset[str]:
    """Return the names of a checked certificate, as ``getpeercert`` gives it: common names and alternative names."""
    return frozenset(fold(name) for name in _names(certificate or {}))


def _names(certificate: dict[str, Any]) -> Iterator[str]:
    for part in certificate.get("subject", ()):
        for kind, value in part:
            if kind == "commonName":
                yield value
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in _NAME_KINDS:
            yield value
