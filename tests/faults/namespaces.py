"""Each controller in a network namespace of its own, with a link of its own to each of its peers.

Owns: namespaces, veth pairs, and what is done to a link: down, one-way loss, slow.
Never: touches the machine's own interfaces. Needs root.

Hosts and management use UNIX sockets, so only the transfer path crosses the links.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.integration.harness import Place

LINKS: Final = (("C", "A"), ("A", "B"))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)


class Network:
    """The namespaces of the sites in `LINKS`. ``places``: for `Site`."""

    def __init__(self) -> None:
        self._prefix = f"rc{os.getpid()}"
        names = sorted(set(itertools.chain.from_iterable(LINKS)))
        peers: dict[str, dict[str, str]] = {name: {} for name in names}
        for number, (near, far) in enumerate(LINKS, 1):
            peers[near][far] = f"10.77.{number}.2"
            peers[far][near] = f"10.77.{number}.1"
        self.places = {
            name: Place(("ip", "netns", "exec", self._namespace(name)), "0.0.0.0", peers[name]) for name in names
        }

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _inside(self, name: str, *words: str) -> None:
        _run("ip", "netns", "exec", self._namespace(name), *words)

    def make(self) -> None:
        """Make namespaces and links."""
        for name in self.places:
            _run("ip", "netns", "add", self._namespace(name))
            self._inside(name, "ip", "link", "set", "lo", "up")
        for number, (near, far) in enumerate(LINKS, 1):
            _run(
                "ip", "link", "add", f"to{far}", "netns", self._namespace(near), "type", "veth",
                "peer", "name", f"to{near}", "netns", self._namespace(far),
            )  # fmt: skip
            for name, other, host in ((near, far, 1), (far, near, 2)):
                self._inside(name, "ip", "address", "add", f"10.77.{number}.{host}/24", "dev", f"to{other}")
                self._inside(name, "ip", "link", "set", f"to{other}", "up")

    def remove(self) -> None:
        """Remove the namespaces, and all in them."""
        for name in self.places:
            subprocess.run(["ip", "netns", "del", self._namespace(name)], check=False, capture_output=True)

    # ---- faults ----------------------------------------------------------------

    def down(self, near: str, far: str) -> None:
        """Let nothing pass, silently (F19)."""
        self._inside(near, "ip", "link", "set", f"to{far}", "down")

    def deaf(self, name: str, other: str) -> None:
        """Let nothing that ``other`` sends reach ``name``, while the reverse passes (F22)."""
        self._inside(name, "iptables", "-I", "INPUT", "-i", f"to{other}", "-j", "DROP")

    def slow(self, near: str, far: str) -> None:
        """Let 512 kbit a second pass from ``near`` to ``far`` (F23)."""
        self._inside(
            near, "tc", "qdisc", "replace", "dev", f"to{far}", "root", "tbf",
            "rate", "512kbit", "burst", "8kb", "latency", "800ms",
        )  # fmt: skip

    def heal(self) -> None:
        """End all faults of all links."""
        for near, far in (*LINKS, *(link[::-1] for link in LINKS)):
            self._inside(near, "ip", "link", "set", f"to{far}", "up")
            self._inside(near, "iptables", "-F", "INPUT")
            inside = ["ip", "netns", "exec", self._namespace(near)]
            subprocess.run([*inside, "tc", "qdisc", "del", "dev", f"to{far}", "root"], check=False, capture_output=True)


@contextmanager
def network() -> Iterator[Network]:
    """A network that is removed whatever happens."""
    made = Network()
    try:
        made.make()
        yield made
    finally:
        made.remove()
