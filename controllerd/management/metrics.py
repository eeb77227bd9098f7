"""What Prometheus is told: the counters that the controller keeps anyway, read when asked.

Owns: names, help texts and labels of the metrics. Never: counts itself, or keeps global state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from controllerd.management import views
from controllerd.management.ports import ControllerPort
from controllerd.management.schemas import VERSION, PairStatus, Position
from controllerd.targets.nbd.admission import REFUSALS

_PAIR_LABELS = ("group", "role", "peer")
_STATES = ("SMPL", "COPY", "PAIR", "PSUS", "PSUE", "SSWS")


class ControllerCollector(Collector):
    """Collects one controller's metrics when the registry is read."""

    def __init__(self, controller: ControllerPort) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        controller = self._controller
        yield InfoMetricFamily(
            "remotecopy_controller",
            "Which controller this is.",
            {
                "name": controller.name,
                "serial": str(controller.serial),
                "version": VERSION,
                "time_source": controller.storage.settings.time_source,
            },
        )
        yield from self._storage()
        yield from self._groups()
        yield from self._pairs()
        yield from self._host_port()
        yield from self._requests()

    def _storage(self) -> Iterator[Metric]:
        controller, storage = self._controller, self._controller.storage
        started, budget = controller.started_at / 1e9, storage.budget
        yield GaugeMetricFamily("remotecopy_start_time_seconds", "Wall-clock time of the start.", started)
        yield GaugeMetricFamily("remotecopy_cache_used_bytes", "Written data not yet on the disks.", budget.used)
        yield GaugeMetricFamily("remotecopy_cache_limit_bytes", "Most of it that is kept.", budget.limit)
        yield CounterMetricFamily("remotecopy_checkpoints", "Checkpoints taken.", storage.checkpointer.count)
        clamped = storage.write_time.clamped
        yield CounterMetricFamily(
            "remotecopy_write_times_clamped", "Writes whose carried time was older than the last (spec 3.3).", clamped
        )
        faults = len(views.faults(storage))
        yield GaugeMetricFamily("remotecopy_faults", "Lines under faults of /v1/system.", faults)
        pools = [(name, pool) for name, pool in sorted(storage.pools.items())]
        yield _gauge("pool_size_bytes", "Capacity.", ("pool",), (((n,), p.regions * p.region_size) for n, p in pools))
        yield _gauge("pool_free_bytes", "Free capacity.", ("pool",), (((n,), p.free * p.region_size) for n, p in pools))
        volumes = sorted(storage.volumes.items())
        yield _gauge("volume_size_bytes", "Size.", ("volume",), (((n,), v.size) for n, v in volumes))
        yield _gauge("volume_allocated_bytes", "Space taken.", ("volume",), (((n,), v.allocated) for n, v in volumes))
        yield _gauge("volume_sessions", "Open sessions.", ("volume",), (((n,), len(v.sessions)) for n, v in volumes))

    def _groups(self) -> Iterator[Metric]:
        groups = sorted(self._controller.storage.groups.items())
        label = ("group",)
        written = CounterMetricFamily("remotecopy_group_written_bytes", "Bytes journaled.", labels=label)
        for name, group in groups:
            written.add_metric((name,), group.bytes_written)
        yield written
        yield _gauge("group_last_sequence", "Last number given.", label, (((n,), g.last_seq) for n, g in groups))
        yield _gauge("group_durable_sequence", "Durable here.", label, (((n,), g.durable_seq) for n, g in groups))
        yield _gauge("group_applied_sequence", "Visible here.", label, (((n,), g.applied_seq) for n, g in groups))
        yield _gauge(
            "group_journal_used_bytes", "Journal in use.", label, (((n,), g.journal.used_bytes) for n, g in groups)
        )
        yield _gauge(
            "group_journal_limit_bytes", "Journal size.", label, (((n,), g.facts.journal_bytes) for n, g in groups)
        )
        yield _gauge("group_accepting", "0: hosts wait for room.", label, (((n,), int(g.accepting)) for n, g in groups))
        yield _gauge(
            "group_fault", "1: see /v1/groups.", label, (((n,), int(g.describe_fault() is not None)) for n, g in groups)
        )

    def _pairs(self) -> Iterator[Metric]:
        entries = list(self._controller.pairs.status())

        def gauge(name: str, text: str, values: Iterable[float | None]) -> Metric:
            pairs = zip(entries, values, strict=True)
            return _gauge(name, text, _PAIR_LABELS, ((_labels(e), v) for e, v in pairs if v is not None))

        state = GaugeMetricFamily("remotecopy_pair_state", "1 for the present state.", labels=(*_PAIR_LABELS, "state"))
        for entry in entries:
            for name in _STATES:
                state.add_metric((*_labels(entry), name), int(entry.state == name))
        yield state
        yield gauge("pair_connected", "1: the peer answers.", (_number(entry.connected) for entry in entries))
        yield gauge("pair_lag_seconds", "How far the secondary is behind.", (entry.lag_s for entry in entries))
        yield gauge("pair_lag_bytes", "Journal not yet at the secondary.", (entry.lag_bytes for entry in entries))
        corrupt = CounterMetricFamily(
            "remotecopy_pair_corrupt_frames", "Damaged data from the peer (spec 4.5).", labels=_PAIR_LABELS
        )
        for entry in entries:
            corrupt.add_metric(_labels(entry), entry.corrupt_frames)
        yield corrupt
        for word in ("written", "transferred", "arrived", "applied"):
            positions: list[Position] = [getattr(entry, word) for entry in entries]
            yield gauge(f"pair_{word}_sequence", f"Last number {word}.", (item.seq for item in positions))
            yield gauge(f"pair_{word}_time", f"Write time of the last {word}, ns.", (item.time for item in positions))

    def _host_port(self) -> Iterator[Metric]:
        nbd = self._controller.nbd
        admission, sessions = nbd.admission, nbd.sessions
        handshakes = nbd.connections - len(sessions)
        states = {"handshake": handshakes, "transmission": len(sessions)}
        yield _gauge("nbd_connections", "Connections now.", ("state",), (((s,), n) for s, n in states.items()))
        yield GaugeMetricFamily("remotecopy_nbd_connections_limit", "Most connections.", nbd.settings.max_connections)
        secured = sum(session.visitor.tls is not None for session in sessions)
        yield GaugeMetricFamily("remotecopy_nbd_tls_connections", "Sessions over TLS now.", secured)
        yield CounterMetricFamily("remotecopy_nbd_connections_accepted", "Since the start.", admission.accepted)
        refused = CounterMetricFamily("remotecopy_nbd_connections_refused", "Closed at once.", labels=("reason",))
        for reason in REFUSALS:
            refused.add_metric((reason,), admission.refused[reason])
        yield refused
        yield CounterMetricFamily(
            "remotecopy_nbd_handshakes_failed", "Ended before an export was opened.", nbd.failed_handshakes
        )
        yield CounterMetricFamily("remotecopy_nbd_idle_closed", "Closed after nbd.idle_timeout_s.", nbd.idle_closed)
        memory = nbd.memory.items()
        yield _gauge("nbd_memory_bytes", "Memory of the host port.", ("kind",), (((k,), n) for k, n in memory))
        yield GaugeMetricFamily(
            "remotecopy_nbd_connection_memory_limit_bytes", "Most of one connection.", nbd.settings.limits.memory_max
        )

    def _requests(self) -> Iterator[Metric]:
        nbd, volumes = self._controller.nbd, self._controller.storage.volumes
        labels = ("volume", "command")
        requests = CounterMetricFamily("remotecopy_nbd_requests", "Requests that were answered.", labels=labels)
        size = CounterMetricFamily("remotecopy_nbd_bytes", "Data, or ranges, of requests without error.", labels=labels)
        errors = CounterMetricFamily("remotecopy_nbd_errors", "Requests answered with an error.", labels=labels)
        for name, counters in sorted(nbd.counters().items()):
            if name not in volumes:
                continue
            for command, numbers in counters.describe().items():
                requests.add_metric((name, command), numbers["requests"])
                size.add_metric((name, command), numbers["bytes"])
                errors.add_metric((name, command), numbers["errors"])
            requests.add_metric((name, "unknown"), counters.unknown)
            errors.add_metric((name, "unknown"), counters.unknown)
        yield from (requests, size, errors)
        waiting = dict.fromkeys(sorted(volumes), 0)
        for session in nbd.sessions:
            waiting[session.machine.volume.name] += session.machine.in_flight
        yield _gauge(
            "nbd_in_flight", "Requests that wait for an answer.", ("volume",), (((n,), w) for n, w in waiting.items())
        )


def _labels(entry: PairStatus) -> tuple[str, str, str]:
    return entry.group, entry.role, entry.peer or ""


def _number(value: bool | None) -> int | None:
    return None if value is None else int(value)


def _gauge(
    name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"remotecopy_{name}", text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family
