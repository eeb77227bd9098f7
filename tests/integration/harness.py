"""Real controllers as processes, for tests that kill them.

Owns: their directories and configurations, start, kill -9 and end by process id, orders over the HTTP API, waiting for
states, and the end of every log when a test fails. Simulated hosts are in ``hosts.py``.
Never: imports anything of the controller or asserts a time; waits have limits only so that a hang becomes a failure.

What a reader would get wrong: NBD and management listen on UNIX sockets, whose paths have room for 107 bytes, so the
directory is a short one in /tmp and not pytest's. The transfer path is TCP on a free loopback port, as in the field.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from deploy.demo.processes import Process, ProgramFailed
from tests.integration.link import Link, Weather

WAIT_LIMIT_S = 60.0
ORDER_LIMIT_S = 30.0
DISK_BYTES = 256 << 20
_TOKEN = "integration-token-0123456789"
SHARED_KEY = "integration-key-0123456789abcdef"


class HarnessFailed(Exception):
    """A process, an order or a wait did not do what the test needs; the text says which and why."""


def wait_for(what: str, ready: Callable[[], bool], limit_s: float = WAIT_LIMIT_S) -> None:
    """Return when ``ready()`` is true. Raises HarnessFailed, naming ``what``, when it never is."""
    deadline = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > deadline:
            raise HarnessFailed(f"waited {limit_s:.0f} s for: {what}")
        time.sleep(0.05)


def seeds(rounds: int) -> list[int]:
    """Return the seeds of a test's rounds; REMOTECOPY_SEED=n replays the one round with that seed.

    The first seed is always the same, so that a plain run repeats; REMOTECOPY_SEEDS_FROM=n looks at others.
    """
    if replay := os.environ.get("REMOTECOPY_SEED"):
        return [int(replay)]
    first = int(os.environ.get("REMOTECOPY_SEEDS_FROM", "1"))
    return list(range(first, first + rounds))


def samples(metrics: str) -> dict[str, float]:
    """Return every sample of Prometheus text, by name with labels as they are written there."""
    lines = (line.rpartition(" ") for line in metrics.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


@dataclass(frozen=True, slots=True)
class Settings:
    """What differs between tests in the configuration of all controllers; units as in the configuration."""

    time_source: str = "host"
    order: str = "time"
    durability: str = "cache"
    checkpoint_interval_s: float = 1.0
    destage_age_s: float = 0.2
    journal_bytes: str = "64MiB"
    segment_bytes: str = "4MiB"
    host_port: str = ""
    """More lines of the section [nbd]."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a controller runs. ``prefix``: words before its command line; ``listen``: its transfer path's address.

    ``peers``: under which address this controller reaches others that are not on loopback.
    """

    prefix: tuple[str, ...] = ()
    listen: str = "127.0.0.1"
    peers: Mapping[str, str] = field(default_factory=dict)


class Controller:
    """One controllerd process with its own directory. Killed and started again as a test likes."""

    def __init__(self, name: str, serial: int, directory: Path, transfer_port: int, place: Place | None = None) -> None:
        self._place = place or Place()
        self.name = name
        self.serial = serial
        self.directory = directory / name
        self.transfer_port = transfer_port
        self.log = self.directory / "log"
        self.kills = 0
        self.program: tuple[str, ...] = ("controllerd",)
        """Python module that is started, and words before its options."""
        self._config = self.directory / "controller.toml"
        self._process: Process | None = None
        self._http = httpx.Client(
            base_url="http://controller",
            headers={"Authorization": f"Bearer {_TOKEN}"},
            transport=httpx.HTTPTransport(uds=str(self.directory / "management.sock")),
            timeout=ORDER_LIMIT_S,
            limits=httpx.Limits(max_keepalive_connections=0),  # none is left over from before a kill
            trust_env=False,
        )

    def configure(self, settings: Settings, peers: dict[str, tuple[int, int]]) -> None:
        """Write the configuration file. ``peers``: name -> (serial, port where its transfer path is reached)."""
        self.directory.mkdir()
        key = self.directory / "key"
        key.touch(mode=0o600)
        key.write_text(SHARED_KEY)
        text = f"""
            [controller]
            name = "{self.name}"
            serial = {self.serial}
            data_directory = "data"
            time_source = "{settings.time_source}"
            [nbd]
            listen = ["unix:nbd.sock"]
            {settings.host_port}
            [management]
            listen = "unix:management.sock"
            token = "{_TOKEN}"
            [replication]
            listen = "{self._place.listen}:{self.transfer_port}"
            shared_key_file = "key"
            backoff_min_ms = 50
            backoff_max_ms = 200
            [storage]
            cache_bytes = "64MiB"
            journal_bytes = "{settings.journal_bytes}"
            segment_bytes = "{settings.segment_bytes}"
            checkpoint_interval_s = {settings.checkpoint_interval_s}
            destage_age_s = {settings.destage_age_s}
            [defaults]
            durability = "{settings.durability}"
            [apply]
            order = "{settings.order}"
        """
        for name, (serial, port) in peers.items():
            text += f"""
            [[peer]]
            name = "{name}"
            address = "{self._place.peers.get(name, "127.0.0.1")}:{port}"
            serial = {serial}
            """
        self._config.write_text(text)

    def uri(self, volume: str) -> str:
        """Return the NBD URI of a volume."""
        return f"nbd+unix:///{volume}?socket={self.directory / 'nbd.sock'}"

    # ---- life ------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon without waiting for it."""
        assert self._process is None, f"{self.name} runs"
        command = [*self._place.prefix, sys.executable, "-m", *self.program, "--config", str(self._config)]
        self._process = Process(command, self.log)

    def wait_ready(self) -> None:
        """Return when it answers orders and hosts. Raises ProgramFailed if it ends instead."""
        process = self._running()
        # httpx leaves a socket open behind a connection that is refused, so it comes when there is someone to answer.
        process.wait_until_it_listens(self.directory / "management.sock")
        process.wait_for(self._healthy)
        process.wait_until_it_listens(self.directory / "nbd.sock")

    def _healthy(self) -> bool:
        try:
            return self._http.get("/healthz", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def reload(self) -> None:
        """Make it take changed files into use."""
        os.kill(self._running().pid, signal.SIGHUP)

    def kill(self) -> None:
        """End it as a disaster would: kill -9 of its process id."""
        self._running().stop(signal.SIGKILL)
        self._process = None
        self.kills += 1

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        return self._running().pid

    def gone(self) -> bool:
        """Whether it ended by itself since it was started (something else killed it); then it can be started again."""
        try:
            self._running().check()
        except ProgramFailed:
            self._process = None
            return True
        return False

    def stop(self) -> None:
        """End it in order, if it runs. Raises HarnessFailed if it does not end with status 0."""
        if self._process is not None:
            status = self._process.stop()
            self._process = None
            if status != 0:
                raise HarnessFailed(f"{self.name} ended with status {status} when it was stopped")

    def close(self) -> None:
        """End it whatever its state."""
        self._http.close()
        if self._process is not None:
            self._process.stop(signal.SIGKILL)
            self._process = None

    def check(self) -> None:
        """Raise ProgramFailed if it ended by itself."""
        self._running().check()

    def _running(self) -> Process:
        assert self._process is not None, f"{self.name} does not run"
        return self._process

    # ---- orders ----------------------------------------------------------------

    def get(self, path: str) -> Any:
        """GET a path of the API. Raises HarnessFailed."""
        return self._answer(self._http.get(path), f"GET {path}")

    def post(self, path: str, order: dict[str, Any]) -> Any:
        """POST an order. Raises HarnessFailed."""
        return self._answer(self._http.post(path, json=order), f"POST {path} {json.dumps(order)}")

    def patch(self, path: str, order: dict[str, Any]) -> Any:
        """PATCH what a path names. Raises HarnessFailed."""
        return self._answer(self._http.patch(path, json=order), f"PATCH {path} {json.dumps(order)}")

    def put(self, path: str, order: dict[str, Any]) -> Any:
        """PUT a part of what a path names. Raises HarnessFailed."""
        return self._answer(self._http.put(path, json=order), f"PUT {path} {json.dumps(order)}")

    def delete(self, path: str) -> Any:
        """DELETE a path of the API. Raises HarnessFailed."""
        return self._answer(self._http.delete(path), f"DELETE {path}")

    def _answer(self, response: httpx.Response, what: str) -> Any:
        if response.is_error:
            raise HarnessFailed(f"{self.name}: {what}: {response.status_code} {response.text}")
        return response.json()

    def metrics(self) -> dict[str, float]:
        """Return every sample of /metrics, by name with labels as they are written there."""
        return samples(self._http.get("/metrics").text)

    def client_file(self) -> Path:
        """Return a configuration of mgmtctl that knows this controller."""
        path = self.directory / "mgmtctl.toml"
        url = f"unix:{self.directory / 'management.sock'}"
        path.write_text(f'default = "{self.name}"\n[controllers.{self.name}]\nurl = "{url}"\ntoken = "{_TOKEN}"\n')
        return path

    def create_pool(self) -> None:
        """Give it one disk and one pool."""
        self.post("/v1/disks", {"name": "disk", "size": DISK_BYTES})
        self.post("/v1/pools", {"name": "pool", "disks": ["disk"]})

    def create_group(self, group: str, volumes: dict[str, int]) -> None:
        """Make a group with volumes of these sizes (bytes)."""
        self.post("/v1/groups", {"name": group})
        for volume, size in volumes.items():
            self.post("/v1/volumes", {"name": volume, "size": size, "pool": "pool", "group": group})

    def pairs(self) -> list[dict[str, Any]]:
        """Return where every group stands, by group and role."""
        return sorted(self.get("/v1/status")["groups"], key=lambda entry: (entry["group"], entry["role"]))

    def states(self) -> set[str]:
        """Return the states that its pairs are in."""
        return {entry["state"] for entry in self.pairs() if entry["peer"] is not None}

    def group(self, name: str) -> dict[str, Any]:
        """Return what it says about a group."""
        answer: dict[str, Any] = self.get(f"/v1/groups/{name}")
        return answer

    def takeover(self, domain: str = "default") -> dict[str, Any]:
        """Take over; returns the answer."""
        answer: dict[str, Any] = self.post("/v1/takeover", {"domain": domain})
        return answer


def create_pair(primary: Controller, secondary: Controller, group: str, **options: Any) -> None:
    """Pair a group with the group and volumes of the same names on the other controller: secondary side, then primary.

    ``options`` are fields of the API's order, such as mode="sync".
    """
    volumes = [
        {"primary": volume["name"], "secondary": volume["name"], "key": volume["key"], "size": volume["size"]}
        for volume in primary.get("/v1/volumes")
        if volume["group"] == group
    ]
    common = {"group": group, "peer_group": group, "volumes": volumes, **options}
    secondary.post("/v1/pairs", {**common, "role": "secondary", "peer": primary.name})
    primary.post("/v1/pairs", {**common, "role": "primary", "peer": secondary.name})


def wait_until_applied(primary: Controller, secondary: Controller, groups: Iterable[str]) -> None:
    """Return when the secondary shows all that the primary has at the start of the wait. Raises HarnessFailed."""
    for group in groups:
        target = position(primary, "primary", group, "written")

        def reached(group: str = group, target: int = target) -> bool:
            return position(secondary, "secondary", group, "applied") >= target

        wait_for(f"group {group} of {secondary.name} to show write {target} of {primary.name}", reached)


def position(controller: Controller, role: str, group: str, how: str) -> int:
    """Return up to which of the primary's numbers this side has it: "written", "durable" or "applied". 0: not known."""
    for entry in controller.pairs():
        if (entry["group"], entry["role"]) == (group, role):
            return int(entry[how]["seq"] or 0)
    raise HarnessFailed(f"{controller.name}: group {group} is {role} of no pair")


class Site:
    """Some controllers in one directory. A context manager: whatever happens, no process is left.

    With ``weather`` the controllers' transfer paths lead over links as bad as that; ``chance`` decides how exactly.
    """

    def __init__(
        self,
        names: Sequence[str],
        settings: Settings | None = None,
        weather: Weather | None = None,
        chance: random.Random | None = None,
        places: Mapping[str, Place] | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._temporary = tempfile.TemporaryDirectory(prefix="rc-")
        self.directory = Path(self._temporary.name)
        ports = _free_ports(2 * len(names))
        self.controllers = {
            name: Controller(name, 1001 + number, self.directory, ports[number], (places or {}).get(name))
            for number, name in enumerate(names)
        }
        # A link leads to each controller, and the others know that controller by its link's port.
        self.links = {
            name: Link(ports[len(names) + number], ports[number], chance or random.Random(), weather)
            for number, name in enumerate(names)
            if weather is not None
        }
        reached = {
            name: (controller.serial, self.links[name].port if weather is not None else controller.transfer_port)
            for name, controller in self.controllers.items()
        }
        for name, controller in self.controllers.items():
            controller.configure(self.settings, {other: reached[other] for other in reached if other != name})

    def __getitem__(self, name: str) -> Controller:
        return self.controllers[name]

    def start(self) -> None:
        """Start all controllers, together, and wait for all."""
        for controller in self.controllers.values():
            controller.start()
        for controller in self.controllers.values():
            controller.wait_ready()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        for controller in self.controllers.values():
            controller.close()
        for link in self.links.values():
            link.close()
        self._temporary.cleanup()

    def logs(self, lines: int = 40) -> str:
        """Return the end of every log, for a failure's report."""
        parts = []
        for path in sorted([*self.directory.glob("*/log"), *self.directory.glob("*.log")]):
            text = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"---- {path.relative_to(self.directory)}", *text]))
        return "\n".join(parts)


@contextlib.contextmanager
def reported(site: Site, **facts: object) -> Iterator[None]:
    """Print what is needed to understand and to replay a failure inside the block."""
    try:
        yield
    except BaseException:
        print(f"FAILED with {', '.join(f'{name}={value}' for name, value in facts.items())}")
        if "seed" in facts:
            print(f"replay with REMOTECOPY_SEED={facts['seed']}")
        print(site.logs())
        raise


def chance(seed: int, salt: str) -> random.Random:
    """Return the random numbers of one round."""
    return random.Random(f"{salt}-{seed}")


def _free_ports(count: int) -> list[int]:
    """Return TCP ports that nothing listens on now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
