"""kill -9 of each daemon of a three-site cascade under load, twenty times; nothing acknowledged is ever lost.

Hosts write to C; C has a synchronous pair with A, and A an asynchronous one with B. The load is a bank over two groups
and a write-and-verify load on a volume of its own; both go on over every crash. After each crash of C the whole volume
is read back against the hosts' record (I9); after each crash of any of them replication must go on under load. In the
end the load stops, everything arrives, and the three copies must be equal, hold everything acknowledged, and be
consistent.

Replay one round with REMOTECOPY_SEED=n; look at other moments with REMOTECOPY_SEEDS_FROM=n.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from tests.integration.harness import (
    Controller,
    Settings,
    Site,
    chance,
    create_pair,
    reported,
    seeds,
    wait_until_applied,
)
from tests.integration.hosts import Hosts, check_bank, hostsim, same_content, volume_options
from tests.integration.link import Weather

pytestmark = pytest.mark.slow

KILLS = 20
VOLUME_BYTES = 4 << 20
GROUPS = {"g1": ("accounts1", "log1", "scratch"), "g2": ("accounts2", "log2")}
BANK = ("accounts1", "accounts2", "log1", "log2")
SCRATCH = "scratch"
LEGS = (("C", "A"), ("A", "B"))
HOSTS = "mainframe:1,open:2"
PATIENCE_S = "60"
# Small blocks, and room in the journals: a kill must not look like a link that is too slow for the load.
BLOCKS = ("--block-size", "512")
SETTINGS = Settings(journal_bytes="512MiB")
WEATHER = Weather(latency_max_s=0.005, stall_max_s=0.1, stall_chance=0.005)


def prepare(site: Site, names: Sequence[str]) -> None:
    """Give all controllers the same groups and volumes, and pair C with A and A with B, where they are."""
    for name in names:
        site[name].create_pool()
        for group, volumes in GROUPS.items():
            site[name].create_group(group, dict.fromkeys(volumes, VOLUME_BYTES))
    for group in GROUPS:
        if "A" in names:
            # The primary waits through a restart of its peer instead of going on alone.
            waits = {"sync_timeout_s": 120, "on_sync_loss": "block"}
            create_pair(site["C"], site["A"], group, mode="sync", domain="sync", **waits)
        if "B" in names:
            create_pair(site["A"], site["B"], group, mode="async")


class Load:
    """The hosts of the crash tests, on C."""

    def __init__(self, site: Site, seed: int) -> None:
        self._site = site
        self._bank = [site["C"].uri(volume) for volume in BANK]
        hostsim("format", *volume_options(self._bank), "--ledgers", "2", "--hosts", HOSTS, "--chains", "3", *BLOCKS)
        going_on = ["--seconds", "0", "--reconnect", PATIENCE_S]
        self.bank = Hosts(
            "run",
            [*volume_options(self._bank), "--hosts", HOSTS, "--pause-ms", "10", *going_on],
            site.directory / "bank.jsonl",
        )
        scratch = ["--volume", site["C"].uri(SCRATCH), "--mainframe", "--seed", str(seed), "--blocks", "1000"]
        self.scratch = Hosts(
            "write-verify", [*scratch, "--depth", "4", "--pause-ms", "10", *going_on], site.directory / "scratch.jsonl"
        )

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self.bank.__exit__()
        self.scratch.__exit__()

    def wait_for_progress(self) -> None:
        """Return when both loads had something acknowledged."""
        self.bank.wait_for_progress()
        self.scratch.wait_for_progress()

    def finish(self) -> None:
        """Stop; raises HarnessFailed if a read ever showed anything that it must not."""
        bank = self.bank.finish()
        scratch = self.scratch.finish()
        print(
            f"{bank['transfers']} transfers, {scratch['acknowledged']} random writes, {scratch['whole_reads']} "
            f"verifications of the whole volume, longest wait {bank['longest_wait_s']:.2f} s"
        )

    def check(self, controller: Controller) -> None:
        """Demand of a controller's volumes everything that was acknowledged."""
        check_bank([controller.uri(volume) for volume in BANK], self.bank.record, lossless=True)
        hostsim("verify", "--volume", controller.uri(SCRATCH), "--record", self.scratch.record)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["C", "A", "B"])
@pytest.mark.parametrize("seed", seeds(1))
def test_cascade_survives_kills(victim: str, seed: int) -> None:
    random = chance(seed, f"crash-{victim}")
    names = ("C", "A", "B")
    with Site(names, SETTINGS, WEATHER, chance(seed, "weather")) as site, reported(site, seed=seed, victim=victim):
        site.start()
        prepare(site, names)
        with Load(site, seed) as load:
            for _ in range(KILLS):
                load.wait_for_progress()
                time.sleep(random.uniform(0.0, 1.0))
                site[victim].kill()
                time.sleep(random.choice((0.0, 0.0, random.uniform(0.0, 1.0))))
                site[victim].start()
                site[victim].wait_ready()
                for primary, secondary in LEGS:
                    wait_until_applied(site[primary], site[secondary], GROUPS)
            load.wait_for_progress()
            load.finish()
        for primary, secondary in LEGS:
            wait_until_applied(site[primary], site[secondary], GROUPS)
            assert site[secondary].states() == {"PAIR"}
            for volumes in GROUPS.values():
                for volume in volumes:
                    assert same_content(site[primary].uri(volume), site[secondary].uri(volume)), (secondary, volume)
        for name in names:
            load.check(site[name])


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("durability", ["cache", "stable"])
def test_single_controller_survives_kills(durability: str, seed: int) -> None:
    """Without any pair; more often, since nothing has to be waited for."""
    random = chance(seed, f"single-{durability}")
    with Site(["C"], Settings(durability=durability)) as site, reported(site, seed=seed, durability=durability):
        site.start()
        prepare(site, ["C"])
        with Load(site, seed) as load:
            for _ in range(KILLS):
                load.wait_for_progress()
                time.sleep(random.uniform(0.0, 0.5))
                site["C"].kill()
                site["C"].start()
                site["C"].wait_ready()
            load.wait_for_progress()
            load.finish()
        load.check(site["C"])
        site["C"].stop()
        site["C"].start()
        site["C"].wait_ready()
        load.check(site["C"])
