"""The transfer path of real controllers over mutual TLS and over UNIX sockets: refused, made, lost and made again."""

from __future__ import annotations

import functools
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.integration.harness import Controller, Settings, Site, create_pair, reported, wait_for, wait_until_applied
from tests.integration.hosts import same_content
from tests.integration.link import Link, Weather

SIZE = 1 << 20
CALM = Weather(latency_max_s=0.0, stall_chance=0.0)
KEY_LINE = 'shared_key_file = "key"'


@pytest.fixture
def site() -> Iterator[Site]:
    """A and B, not started; A's transfer port is reached over a link."""
    with Site("AB", Settings(time_source="clock"), CALM) as it, reported(it):
        yield it


def edit(controller: Controller, old: str, new: str, more: str = "") -> None:
    """Change the configuration file of a controller that does not run."""
    path = controller.directory / "controller.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new) + more)


def make_pair(site: Site) -> None:
    for controller in site.controllers.values():
        controller.create_pool()
        controller.create_group("g", {"v": SIZE})
    create_pair(site["A"], site["B"], "g")
    wait_for("the connection", lambda: connected(site["B"]))


def connected(controller: Controller) -> bool:
    return all(entry["connected"] for entry in controller.pairs())


def write(controller: Controller, seed: int) -> None:
    """Write all of the volume, with content of its own for each seed."""
    image = controller.directory / "image"
    image.write_bytes(random.Random(seed).randbytes(SIZE))
    subprocess.run(["nbdcopy", str(image), controller.uri("v")], check=True, timeout=60)


def converged(site: Site) -> None:
    wait_until_applied(site["A"], site["B"], ["g"])
    assert same_content(site["A"].uri("v"), site["B"].uri("v"))


def give_certificate(controller: Controller, authority: Authority, name: str) -> None:
    for kind, path in zip(("cert", "key"), authority.issue(name), strict=True):
        shutil.copy(path, controller.directory / f"tls-{kind}.pem")


def refused(secondary: Controller, why: str) -> bool:
    return all(why in entry["link_reason"] for entry in secondary.pairs())


@pytest.mark.slow
@pytest.mark.parametrize("with_key", [True, False], ids=["with shared key", "certificates alone"])
def test_mutual_tls(site: Site, with_key: bool, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    a, b = site["A"], site["B"]
    for controller in (a, b):
        shutil.copy(authority.certificate, controller.directory / "ca.pem")
        give_certificate(controller, authority, controller.name)
        tls = '\n[replication.tls]\ncertificate = "tls-cert.pem"\nkey = "tls-key.pem"\nca = "ca.pem"\n'
        edit(controller, KEY_LINE, KEY_LINE if with_key else "", tls)
    site.start()
    make_pair(site)
    write(a, 1)
    converged(site)

    link = site.links["A"]
    link.close()
    wait_for("the loss to be seen", lambda: not connected(a) and not connected(b))
    write(a, 2)
    site.links["A"] = Link(link.port, a.transfer_port, random.Random(), CALM)
    converged(site)

    wrong = [(b, stranger, "B"), (a, authority, "Z")]
    if not with_key:  # else the key proves who dials, whatever its certificate is for
        wrong = [(a, stranger, "A"), (b, authority, "Z")]
    for number, (controller, issuer, name) in enumerate(wrong, 3):
        controller.stop()
        give_certificate(controller, issuer, name)
        controller.start()
        controller.wait_ready()
        write(a, number)
        wait_for("a refusal", functools.partial(refused, b, "CERTIFICATE" if controller is a else "closed by the peer"))
        assert not connected(a)
        assert not connected(b)
        assert a.states() == b.states() == {"PAIR"}, "a connection that is refused ends nothing"
        controller.stop()
        give_certificate(controller, authority, controller.name)
        controller.start()
        controller.wait_ready()
        converged(site)


def test_unix_socket(site: Site) -> None:
    a, b = site["A"], site["B"]
    for controller, other in ((a, b), (b, a)):
        edit(controller, f"127.0.0.1:{controller.transfer_port}", "unix:transfer.sock")
        edit(controller, f"127.0.0.1:{_reached(site, other)}", f"unix:{other.directory}/transfer.sock")
    site.start()
    make_pair(site)
    write(a, 1)
    converged(site)
    a.kill()
    wait_for("the loss to be seen", lambda: not connected(b))
    a.start()  # where the socket file of the killed one still lies
    a.wait_ready()
    write(a, 2)
    converged(site)


def _reached(site: Site, controller: Controller) -> int:
    return site.links[controller.name].port
