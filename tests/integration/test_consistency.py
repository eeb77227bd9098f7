"""The primary is killed at random moments; what the secondary shows after a takeover is a consistent copy every time.

hostsim moves money over four volumes in two groups, from a mainframe with write times and two open hosts. Each round
has new controllers A and B with an asynchronous pair of both groups over a bad long-distance link, a kill -9 of A at a
moment that the round's seed decides, with or without the loss of what is on the link, and a takeover at B. Then the
image at B must be a consistent cut over both groups (I1, I5), it must take writes, and the hosts must be able to go on
there.

Replay one round with REMOTECOPY_SEED=n; look at other moments with REMOTECOPY_SEEDS_FROM=n.
"""

from __future__ import annotations

import time

import pytest

from tests.integration.harness import Settings, Site, chance, create_pair, reported, seeds, wait_until_applied
from tests.integration.hosts import Hosts, check_bank, hostsim, volume_options
from tests.integration.link import Weather

pytestmark = pytest.mark.slow

ROUNDS = 20
VOLUME_BYTES = 2 << 20
GROUPS = {"g1": ("accounts1", "log1"), "g2": ("accounts2", "log2")}
# Accounts on both groups, then the logs of both: every transfer crosses from one group to the other and back.
VOLUMES = ("accounts1", "accounts2", "log1", "log2")
HOSTS = "mainframe:1,open:2"
# With open hosts only, many writes of both groups have the same write time: only all or none of those may be visible.
VARIANTS = (("host", HOSTS), ("clock", HOSTS), ("host", "open:3"), ("sequence", HOSTS))


def prepare(site: Site, order: str) -> None:
    """Give all controllers the same groups and volumes, and pair A with B, and C with A if there is a C."""
    for controller in site.controllers.values():
        controller.create_pool()
        for group, volumes in GROUPS.items():
            controller.create_group(group, dict.fromkeys(volumes, VOLUME_BYTES))
    for group in GROUPS:
        if "C" in site.controllers:
            create_pair(site["C"], site["A"], group, mode="sync", domain="sync")
        create_pair(site["A"], site["B"], group, mode="async", order=order)


@pytest.mark.parametrize("seed", seeds(ROUNDS))
@pytest.mark.parametrize("order", ["sequence", "time"])
def test_takeover_shows_a_consistent_copy(order: str, seed: int) -> None:
    random = chance(seed, f"consistency-{order}")
    time_source, kinds = VARIANTS[seed % len(VARIANTS)]
    moment_s = random.uniform(0.0, 2.0)
    settings = Settings(time_source=time_source, order=order)
    with Site(["A", "B"], settings, Weather(), chance(seed, "weather")) as site:
        with reported(site, seed=seed, order=order, time_source=time_source, moment_s=moment_s):
            site.start()
            prepare(site, order)
            at_a = [site["A"].uri(volume) for volume in VOLUMES]
            at_b = [site["B"].uri(volume) for volume in VOLUMES]
            options = ["--ledgers", "2", "--hosts", kinds, "--chains", str(random.choice((1, 3, 5)))]
            hostsim("format", *volume_options(at_a), *options, "--accounts", "24", "--slots", "16", "--seed", str(seed))
            wait_until_applied(site["A"], site["B"], GROUPS)
            record = site.directory / "record.jsonl"
            with Hosts("run", [*volume_options(at_a), "--hosts", kinds, "--seconds", "0"], record) as hosts:
                hosts.wait_for_progress()
                time.sleep(moment_s)
                assert site["B"].states() == {"PAIR"}, "an empty copy would be consistent, too"
                kill, cut = site["A"].kill, site.links["A"].cut
                for disaster in random.choice(((kill,), (kill, cut), (cut, kill))):
                    disaster()
                hosts.wait_until_lost()
            answer = site["B"].takeover()
            report = check_bank(at_b, record)
            print(
                f"seed {seed}, order {order}, time {time_source}, {kinds}: killed after {moment_s:.2f} s; "
                f"{sum(chain['writes'] for chain in report['chains'])} writes at B, {report['missing_writes']} missing "
                f"({report['rpo_s']:.3f} s); takeover took {answer['rto_s']:.3f} s"
            )
            hostsim("run", *volume_options(at_b), "--hosts", kinds, "--seconds", "0.3", "--record", record)
            after = check_bank(at_b, record, lossless=True)
            assert sum(c["writes"] for c in after["chains"]) > sum(c["writes"] for c in report["chains"])


@pytest.mark.parametrize("seed", seeds(5))
def test_takeover_at_the_synchronous_site_loses_nothing(seed: int) -> None:
    """C, the first of a cascade, is killed; A takes over with all that was acknowledged, and B goes on following A."""
    random = chance(seed, "sync-takeover")
    moment_s = random.uniform(0.0, 2.0)
    with Site(["C", "A", "B"]) as site, reported(site, seed=seed, moment_s=moment_s):
        site.start()
        prepare(site, "time")
        at_c, at_a, at_b = ([site[name].uri(volume) for volume in VOLUMES] for name in ("C", "A", "B"))
        options = ["--ledgers", "2", "--hosts", HOSTS, "--chains", "3", "--accounts", "24", "--slots", "16"]
        hostsim("format", *volume_options(at_c), *options, "--seed", str(seed))
        record = site.directory / "record.jsonl"
        with Hosts("run", [*volume_options(at_c), "--hosts", HOSTS, "--seconds", "0"], record) as hosts:
            hosts.wait_for_progress()
            time.sleep(moment_s)
            assert site["A"].states() == {"PAIR"}
            site["C"].kill()
            hosts.wait_until_lost()
        answer = site["A"].takeover("sync")
        report = check_bank(at_a, record, lossless=True)
        print(
            f"seed {seed}: killed after {moment_s:.2f} s; {sum(chain['writes'] for chain in report['chains'])} writes "
            f"at A, none missing; takeover took {answer['rto_s']:.3f} s"
        )
        hostsim("run", *volume_options(at_a), "--hosts", HOSTS, "--seconds", "0.3", "--record", record)
        wait_until_applied(site["A"], site["B"], GROUPS)
        check_bank(at_b, record, lossless=True)
