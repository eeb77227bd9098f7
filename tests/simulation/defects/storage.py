"""Defects of the storage layer: journal, cache, destage, checkpoint, recovery."""

from __future__ import annotations

from typing import Final

from tests.simulation.defects.plant import Defect, Edit

_JOURNAL: Final = "controllerd/storage/journal.py"
_SCAN: Final = "controllerd/storage/journal_scan.py"
_RECOVERY: Final = "controllerd/storage/recovery.py"
_RECORDS: Final = "controllerd/model/records.py"
_DESTAGE: Final = "controllerd/storage/destage.py"
_CHECKPOINT: Final = "controllerd/storage/checkpoint.py"
_LAYERS: Final = "controllerd/storage/layers.py"
_VOLUME: Final = "controllerd/storage/volume.py"
_SYSTEM: Final = "controllerd/storage/system.py"
_RETENTION: Final = "controllerd/storage/retention.py"
_ACKNOWLEDGE: Final = "controllerd/storage/acknowledge.py"
_HORIZONS: Final = "controllerd/storage/horizons.py"

_LOCAL: Final = ("storage", "small")
_FAILURES: Final = "unit:tests/unit/storage/test_failures.py"

STORAGE: Final[tuple[Defect, ...]] = (
    Defect("acknowledge before the journal is written", "I4 I9", _LOCAL, (
        Edit(_JOURNAL, "        segment.file.write_vector(buffers, size, segment.end)\n",
             "        import asyncio\n\n        asyncio.get_running_loop().call_later(\n"
             "            0.01, segment.file.write_vector, buffers, size, segment.end)\n"),
    )),
    Defect("no journal sync", "I4", _LOCAL, (
        Edit(_JOURNAL, "                current.file.begin_sync(go_on)\n", "                go_on(None)\n"),
    )),
    Defect("sync only the newest journal segment", "I4", _LOCAL, (
        Edit(_JOURNAL, "        rest = iter(segments)\n", "        rest = iter(segments[-1:])\n"),
    )),
    Defect("sync counts for what was written while it ran", "I4", _LOCAL, (
        Edit(_JOURNAL, "                self.durable = max(self.durable, target)\n            done(target, None)\n",
             "                self.durable = self.last\n            done(self.last, None)\n"),
    )),
    Defect("retry a failed journal sync", "I4", (_FAILURES,), (
        Edit(_JOURNAL, "                done(target, self._failure(f\"journal sync failed: {error}\"))\n",
             "                import asyncio\n\n                asyncio.get_running_loop().call_later(\n"
             "                    0.1, current.file.begin_sync, go_on)\n"),
    )),
    Defect("flush answered at once", "I4", _LOCAL, (
        Edit(_ACKNOWLEDGE, "        self.flushed.when(sequence, waiter)\n", "        waiter(None)\n"),
    )),
    Defect("horizon one record too far", "I4", _LOCAL, (
        Edit(_HORIZONS, "        while waiting and waiting[0][0] <= sequence:\n            waiting.popleft()[1](None)\n",
             "        while waiting and waiting[0][0] <= sequence + 1:\n            waiting.popleft()[1](None)\n"),
    )),
    Defect("stable group acknowledges at once", "I4", _LOCAL, (
        Edit(_ACKNOWLEDGE, "            self.request_sync(sequence)\n            return\n", "            self.request_sync(sequence)\n"),
    )),
    Defect("no check of the data CRC in the journal", "I8 I10", _LOCAL, (
        Edit(_RECORDS, "        if crc32c(data) != data_crc:\n", "        if False:\n"),
    )),
    Defect("no check of the record header CRC", "I8 I10", ("unit:tests/unit/model/test_records.py",), (
        Edit(_RECORDS, "    if crc32c(buffer[position : position + HEADER_SIZE - 4]) != header_crc:\n", "    if False:\n"),
    )),
    Defect("recovery goes on in the old incarnation", "I2 I8", _LOCAL, (
        Edit(_RECOVERY, "(last + 1, group.incarnation + 1)]", "(last + 1, group.incarnation)]"),
    )),
    Defect("a hole in the journal is taken for its end", "I8", ("unit:tests/simulation/test_journal_rot.py",), (
        Edit(_SCAN, "    if walk.proven >= walk.expected:\n", "    if False:\n"),
    )),
    Defect("recovery does not make durable what it shows", "I4 I20", _LOCAL, (
        Edit(_RECOVERY, "    if segment.last > durable:\n", "    if True:\n        segment.begun = True\n        return\n"
             "    if segment.last > durable:\n"),
    )),
    Defect("recovery gives the last number again", "I2", _LOCAL, (
        Edit(_RECOVERY, "    group.last_seq = group.staged_seq = reached\n",
             "    group.last_seq = group.staged_seq = max(0, reached - 1)\n"),
    )),
    Defect("recovery leaves out the first record", "I1", _LOCAL, (
        Edit(_RECOVERY, "        if record.sequence > facts.destaged:\n", "        if record.sequence > facts.destaged + 1:\n"),
    )),
    Defect("journal freed before the checkpoint", "I4 I9", _LOCAL, (
        Edit(_RETENTION, "        through = min(group.facts.retained, group.facts.destaged)\n",
             "        through = group.durable_seq\n"),
    )),
    Defect("destage before the journal is durable", "I1 I8", _LOCAL, (
        Edit(_DESTAGE, "        if window.mark[0] > group.durable_seq:  # ticks", "        if False:  # ticks"),
    )),
    Defect("checkpoint without syncing the disks", "I4", _LOCAL, (
        Edit(_CHECKPOINT, "                await self.sync_disks()\n", "                pass\n"),
    )),
    Defect("checkpoint counts writes that wait in memory", "I4 I9", _LOCAL, (
        Edit(_CHECKPOINT, "            marks = {group.name: group.destaged_mark for group in groups}\n",
             "            marks = {group.name: group.applied_mark for group in groups}\n"),
    )),
    Defect("a freed region is used again before the checkpoint", "I1 I9", (_FAILURES,), (
        Edit(_DESTAGE, "                self._freed(self._group, volume.pool, volume.unmap(region))\n",
             "                volume.pool.zero([volume.map[region]])\n"
             "                volume.pool.release([volume.unmap(region)])\n"),
    )),
    Defect("a freed region is used again although its group stayed behind", "I1 I9", (_FAILURES,), (
        Edit(_CHECKPOINT, "                self._freed = [item for item in freed if item.group in names] + self._freed\n", ""),
        Edit(_CHECKPOINT, "                if name not in names:\n                    by_pool", "                by_pool"),
    )),
    Defect("a freed region comes back as it was", "I9", _LOCAL, (
        Edit(_CHECKPOINT, "            await self.run_blocking(pool.zero, regions)\n", "            pass\n"),
    )),
    Defect("free regions are not zeroed after a crash", "I9", _LOCAL, (
        Edit(_SYSTEM, "        if not clean:\n", "        if clean:\n"),
    )),
    Defect("a changed map page is forgotten", "I4 I9", _LOCAL, (
        Edit(_VOLUME, "            self._mapped += 1\n            self.dirty_pages.add(region // MAP_PAGE_ENTRIES)\n",
             "            self._mapped += 1\n"),
    )),
    Defect("a trimmed region stays in the kept map", "I9 I20", _LOCAL, (
        Edit(_VOLUME, "            self._mapped -= 1\n            self.dirty_pages.add(region // MAP_PAGE_ENTRIES)\n",
             "            self._mapped -= 1\n"),
    )),
    Defect("parts of a block merged wrongly", "I9", _LOCAL, (
        Edit(_LAYERS, "        self.known |= ((1 << length) - 1) << start\n",
             "        if not self.whole:  # a range that begins before the piece and reaches it loses its beginning\n"
             "            gap = (~self.known & (1 << start) - 1).bit_length()\n"
             "            self.known &= ~((1 << start) - (1 << gap))\n"
             "        self.known |= ((1 << length) - 1) << start\n"),
    )),
    Defect("zeros leave newer blocks in the cache", "I9", _LOCAL, (
        Edit(_LAYERS, "                del active[block]\n", "                pass\n"),
    )),
    Defect("the layer being destaged hides newer writes", "I9", _LOCAL, (
        Edit(_LAYERS, "in ((self.frozen_zeroed, self.frozen), (self.zeroed, self.active)):",
             "in ((self.zeroed, self.active), (self.frozen_zeroed, self.frozen)):"),
    )),
    Defect("a read does not notice that a destage ended", "I9", _LOCAL, (
        Edit(_VOLUME, "            elif destages == self.destages:\n", "            else:\n"),
    )),
    Defect("an edge of a zeroed range is always taken for a hole", "I9", _LOCAL, (
        Edit("controllerd/storage/received.py",
             "    if end & mask and end > offset and not volume.map[end >> shift]:\n", "    if end & mask and end > offset:\n"),
    )),
)  # fmt: skip
