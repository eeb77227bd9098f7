"""Defects of the transfer path and of acknowledging: what is sent, taken in, numbered and confirmed."""

from __future__ import annotations

from typing import Final

from tests.simulation.defects.plant import Defect, Edit

_ACKNOWLEDGE: Final = "controllerd/storage/acknowledge.py"
_GROUP: Final = "controllerd/storage/group.py"
_RECEPTION: Final = "controllerd/storage/reception.py"
_RECOVERY: Final = "controllerd/storage/recovery.py"
_ARRIVAL: Final = "controllerd/model/arrival.py"
_PLAN: Final = "controllerd/model/apply_plan.py"
_TIME: Final = "controllerd/model/write_time.py"
_BATCH: Final = "controllerd/replication/batch.py"
_FRAMES: Final = "controllerd/replication/frames.py"
_INTAKE: Final = "controllerd/replication/intake.py"
_MIRROR: Final = "controllerd/replication/mirror.py"
_PRIMARY: Final = "controllerd/replication/primary.py"
_DIFFERENCES: Final = "controllerd/storage/differences.py"
_SENDER: Final = "controllerd/replication/sender.py"
_TICKER: Final = "controllerd/replication/ticker.py"

_UNREAD: Final = "unread"
"""Nobody asks for differences before there is a resync."""
_DIFFER: Final = "unit:tests/unit/storage/test_differences.py"
_DIFFER_PAIR: Final = "unit:tests/integration/test_transfer_differences.py"

TRANSFER: Final[tuple[Defect, ...]] = (
    Defect("acknowledge C's host before A has the write", "I3", (), (
        Edit(_ACKNOWLEDGE, "            complete = min(complete, self._mirror_acked)\n", ""),
    )),
    Defect("acknowledge what is journaled here, mirror or not", "I3", (), (
        Edit(_ACKNOWLEDGE, "        if not self.mirrored:\n            self.complete.advance(sequence)\n",
             "        self.complete.advance(sequence)\n"),
    )),
    Defect("flush does not wait for the mirror's disk", "I3 I4", (), (
        Edit(_ACKNOWLEDGE, "            flushed = min(flushed, self._mirror_durable)\n", ""),
    )),
    Defect("what the mirror received counts as durable there", "I3 I4", (), (
        Edit(_MIRROR, "        self._group.mirror_progress(ack.received, ack.durable)\n",
             "        self._group.mirror_progress(ack.received, ack.received)\n"),
    )),
    Defect("after a restart the mirror is thought to have everything", "I3", (), (
        Edit(_PRIMARY, "                self.mirror.start(record.start_seq if created else 0)\n",
             "                self.mirror.start(self.group.last_seq)\n"),
    )),
    Defect("a stable mirror confirms before its sync", "I3 I4", (), (
        Edit(_INTAKE, '        if self._group.durability == "stable":\n            return self._durable_origin\n', ""),
    )),
    Defect("forget C's number after a restart of A", "I2 I3", (), (
        Edit(_RECOVERY, "    group.last_origin = max(group.last_origin, record.origin)\n", ""),
    )),
    Defect("forget C's number on reconnect", "I2", (), (
        Edit(_INTAKE, "                if batch.last > group.last_origin:\n", "                if True:\n"),
        Edit(_INTAKE, "                    if here > 0:\n", "                    if False:\n"),
        Edit(_INTAKE, "        return self._group.last_origin + 1\n", "        return max(1, self._group.last_origin)\n"),
    )),
    Defect("no gap check", "I1 I2", (), (
        Edit(_ARRIVAL, "            self._hold(first, last, size, payload)\n            return []\n",
             "            return [payload]\n"),
        Edit(_RECEPTION, "            if sequence != expected or time < latest:\n",
             "            expected = sequence\n            if time < latest:\n"),
        Edit(_PLAN, "            if seq != last_seq + 1 or time < last_time:\n                raise self._out_of_order(name, last_seq",
             "            if time < last_time:\n                raise self._out_of_order(name, last_seq"),
    )),
    Defect("begin one record too late after a reconnect", "I1 I19", (), (
        Edit(_SENDER, "max(pull.next_seq, start_seq + 1), pull.credit",
             "max(pull.next_seq + (self.epoch > 0), start_seq + 1), pull.credit"),
    )),
    Defect("a secondary with records of a lost run goes on", "I1 I2 I19", (), (
        Edit(_PRIMARY, "        if last > group.last_seq:\n", "        if False:\n"),
        Edit(_PRIMARY, "        elif last > record.start_seq and _incarnation_of(group, last) != pull.incarnation:\n",
             "        elif False:\n"),
    )),
    Defect("no check of the data CRC on the wire", "I10", ("unit:tests/unit/replication/test_batch.py",), (
        Edit(_BATCH, "            if check(data) != data_crc:\n", "            if False:\n"),
    )),
    Defect("no check of the record header CRC on the wire", "I10", ("unit:tests/unit/replication/test_batch.py",), (
        Edit(_BATCH, "        if magic != MAGIC or check(raw[position : position + _CHECKED]) != header_crc:\n",
             "        if magic != MAGIC:\n"),
    )),
    Defect("no check of the frame header CRC", "I10 I17", ("unit:tests/unit/replication/test_frames.py",), (
        Edit(_FRAMES, "            if kind == _DATA and actual != crc:\n", "            if False:\n"),
        Edit(_FRAMES, "            if kind != _DATA and crc32c(payload, actual) != crc:\n", "            if False:\n"),
    )),
    Defect("records of another generation are taken", "I13 I16", ("unit:tests/unit/replication/test_batch.py",), (
        Edit(_BATCH, "        if record_generation != generation or version != VERSION:\n", "        if version != VERSION:\n"),
    )),
    Defect("apply what is not durable yet", "I1 I5", ("unit:tests/unit/replication/test_intake.py",), (
        Edit(_INTAKE, "        while undurable and undurable[0].last <= durable:\n", "        while undurable:\n"),
        Edit(_INTAKE, "            self.sync()  # room may come only of what these records let be shown\n",
             "            self.sync()\n            self.settle()\n"),
    )),
    Defect("clock times follow the clock back", "I5 I11", ("unit:tests/unit/model/test_write_time.py",), (
        Edit(_TIME, "        last = self.last + 1\n        if now > last:\n            last = now\n        self.last = last\n",
             "        self.last = last = now\n"),
    )),
    Defect("the host's write time is ignored", "I5 I11", ("unit:tests/unit/model/test_write_time.py",), (
        Edit(_TIME, "        self._used = True\n        if carried is None:\n            return self.last\n",
             "        self._used = True\n        if True:\n            return self.last\n"),
    )),
    Defect("an older write time of a host is taken as it is", "I11", ("unit:tests/unit/model/test_write_time.py",), (
        Edit(_TIME, "        if carried > self.last:\n            self.last = carried\n        elif carried < self.last:\n"
             "            self.clamped += 1\n", "        self.last = carried\n"),
        Edit(_GROUP, "        time = self.write_time.stamp(self.clock(), carried)\n        if time < self.last_time:\n"
             "            time = self.last_time\n", "        time = self.write_time.stamp(self.clock(), carried)\n"),
    )),
    Defect("write times begin anew after a restart", "I5 I11", ("unit:tests/unit/storage/test_group_rules.py",), (
        Edit(_RECOVERY, "    group.write_time.observe(group.last_time if own else min(group.last_time, MAX_HEARD))\n", ""),
    )),
    Defect("only one of the quiet groups gets a tick", "I19", (), (
        Edit(_TICKER, "            return quiet  # all or none", "            return quiet[:1]  # all or none"),
    )),
    Defect("forget ticks", "I19", (), (
        Edit(_TICKER, "        if not groups:\n            return\n", "        if groups is not None:\n            return\n"),
    )),
    Defect("the mirror gives its own clock's times", "I5 I11", ("unit:tests/unit/storage/test_staging.py",), (
        Edit(_RECEPTION, "                if time > last_time:\n                    last_time = time\n                sequence += 1\n",
             "                last_time = times.tick(now)\n                sequence += 1\n"),
    )),
    Defect("what is written after a suspension does not differ", "I12", (_DIFFER,), (
        Edit(_DIFFERENCES, "        group.fed.append(self)\n", ""),
    ), unseen=_UNREAD),
    Defect("the journal is freed before a suspended pair's differences are read", "I12", (_DIFFER,), (
        Edit(_DIFFERENCES, "            group.set_retention(self._consumer, self._walked)\n", ""),
    ), unseen=_UNREAD),
    Defect("differences being read are forgotten when maps take turns", "I12", (_DIFFER,), (
        Edit(_DIFFERENCES, "            self._older, self._newer = self._newer, {}\n",
             "            self._older, self._newer = {}, {}\n"),
    ), unseen=_UNREAD),
    Defect("what the secondary acknowledged does not differ, durable or not", "I12", (_DIFFER_PAIR,), (
        Edit(_PRIMARY, "        return max(self.record.start_seq, self.sender.ack.durable)\n",
             "        return max(self.record.start_seq, self.sender.ack.received)\n"),
    ), unseen=_UNREAD),
    Defect("a secondary that was taken over differs in nothing", "I12", (_DIFFER_PAIR,), (
        Edit(_PRIMARY, "            self._context.move(record, PairEvent.TAKEOVER, reason)\n"
                       "            self.differences.give_up()\n",
             "            self._context.move(record, PairEvent.TAKEOVER, reason)\n"),
    ), unseen=_UNREAD),
    Defect("a secondary that was not heard yet is taken at its last word", "I12", (_DIFFER_PAIR,), (
        Edit(_PRIMARY, "        if not (self._created_now or self.sender.epoch):\n            return None\n", ""),
    ), unseen=_UNREAD),
)  # fmt: skip
