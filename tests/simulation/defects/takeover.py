"""Defects of applying, suspending and taking over: which cut is shown, and who may write."""

from __future__ import annotations

from typing import Final

from tests.simulation.defects.plant import Defect, Edit

_PLAN: Final = "controllerd/model/apply_plan.py"
_APPLIER: Final = "controllerd/replication/applier.py"
_TAKEOVER: Final = "controllerd/replication/takeover.py"
_PRIMARY: Final = "controllerd/replication/primary.py"
_SECONDARY: Final = "controllerd/replication/secondary.py"
_REGRESSIONS: Final = "unit:tests/simulation/test_swarm.py::test_seed_that_failed_once"
_PAIRS: Final = "controllerd/replication/pairs.py"
_EVENTS: Final = "controllerd/replication/pair_events.py"
_TIMER: Final = "controllerd/replication/timer.py"
_GROUP: Final = "controllerd/storage/group.py"
_RECOVERY: Final = "controllerd/storage/recovery.py"
_DESTAGE: Final = "controllerd/storage/destage.py"
_RECEIVED: Final = "controllerd/storage/received.py"

TAKEOVER: Final[tuple[Defect, ...]] = (
    Defect("apply what is as old as the line", "I5", ("unit:tests/unit/model/test_apply_plan.py",), (
        Edit(_PLAN, "        line = self.oldest_arrived()\n", "        line = self.oldest_arrived() + 1\n"),
    )),
    Defect("the newest arrived time is the line", "I5", (), (
        Edit(_PLAN, "        return min((group.settle() for group in self._groups.values()), default=0)\n",
             "        return max((group.settle() for group in self._groups.values()), default=0)\n"),
    )),
    Defect("a group of which nothing has arrived holds nobody back", "I5", ("unit:tests/unit/model/test_apply_plan.py",), (
        Edit(_PLAN, "        return min((group.settle() for group in self._groups.values()), default=0)\n",
             "        return min((group.settle() for group in self._groups.values() if group.records), default=0)\n"),
    )),
    Defect("numbers are skipped in sequence mode", "I5", ("unit:tests/unit/model/test_apply_plan.py",), (
        Edit(_PLAN, "            steps = _merge_numbers(self._groups, self.next_number, limit, known, doubts)\n",
             "            heads = [group.records[0][0] for group in self._groups.values() if group.records]\n"
             "            steps = _merge_numbers(self._groups, min(heads, default=self.next_number), limit, 0, doubts)\n"),
    )),
    Defect("a cut lies in what a mirror lost and got again", "I5", ("unit:tests/unit/model/test_apply_doubt.py",), (
        Edit(_PLAN, "        if len(self._groups) == 1:\n            return []\n", "        if self._groups:\n            return []\n"),
    )),
    Defect("what a mirror gets again is not marked", "I5", (_REGRESSIONS,), (
        Edit(_SECONDARY, "                self._mark(Kind.DOUBT)\n", "                pass\n"),
    )),
    Defect("a slice ends inside a shared write time", "I5", ("unit:tests/unit/model/test_apply_plan.py",), (
        Edit(_PLAN, "            shared = False\n        elif", "            shared = False\n        elif taken >= limit:\n            break\n        elif"),
    )),
    Defect("one group of a plan at a time", "I5", ("unit:tests/unit/replication/test_applier.py",), (
        Edit(_APPLIER, "                self.applied_records += self._members[name].group.apply_through(through)\n",
             "                if self._members[name].group.applied_seq < through:\n"
             "                    self.applied_records += self._members[name].group.apply_through(through)\n"
             "                    return True\n"),
    )),
    Defect("apply the wrong data when it was let go from memory", "I1 I9", ("secondary",), (
        Edit(_RECEIVED, "                            data = reread[sequence]\n",
             "                            data = next(reversed(reread.values()))[:length]\n"),
    )),
    Defect("a restarted secondary shows everything", "I5", ("secondary", "unit:tests/integration/test_transfer_takeover.py"), (
        Edit(_RECOVERY, "            visible = group.role is Role.PRIMARY or record.sequence <= reached\n", "            visible = True\n"),
    )),
    Defect("a restarted secondary forgets what its disks have", "I1 I5", ("secondary",), (
        Edit(_RECOVERY, "            visible = group.role is Role.PRIMARY or record.sequence <= reached\n",
             "            visible = group.role is Role.PRIMARY\n"),
    )),
    Defect("a secondary destages before it says so", "I1 I5", ("secondary",), (
        Edit(_DESTAGE, "                await self._announce(group, window.mark[0])\n", "                pass\n"),
    )),
    Defect("takeover shows everything that arrived", "I5", ("unit:tests/integration/test_transfer_takeover.py",), (
        Edit(_TAKEOVER, "            group = pair.group\n            while group.applied_seq < through:\n",
             "            group = pair.group\n            through = group.last_seq\n            while group.applied_seq < through:\n"),
    )),
    Defect("takeover drops what is beyond the line from the mirror", "I3", (), (
        Edit(_TAKEOVER, "                if last > cut.seqs.get(name, 0):\n                    cut.steps.append((name, last))\n"
             "                cut.seqs[name] = last\n", "                continue\n"),
        Edit(_TAKEOVER, "            group.apply_through(group.last_seq)\n", "            group.pending.clear()\n"),
    )),
    Defect("takeover keeps the generation", "I16", ("unit:tests/integration/test_transfer_takeover.py",), (
        Edit(_TAKEOVER, '= pair.group.generation if pair.record.spec.mode == "sync" else generation\n',
             "= pair.group.generation\n"),
    )),
    Defect("takeover keeps what is pending", "I1 I5", ("secondary",), (
        Edit("controllerd/storage/role_changes.py", "    group.pending.clear()\n    group.role = role\n", "    group.role = role\n"),
    )),
    Defect("takeover is not told to the old primary", "I13 I16", (), (
        Edit(_TAKEOVER, "            pair.intake.close()\n            pair.start_fencing()\n", "            pair.intake.close()\n"),
        Edit(_SECONDARY, '        """Begin to pull, or to fence if this side was taken over."""\n        self.start_fencing()\n',
             '        """Begin to pull."""\n'),
    )),
    Defect("a fenced primary goes on writing", "I16", ("unit:tests/integration/test_transfer_states.py",), (
        Edit(_PRIMARY, '            self.group.refuse_writes(ReadOnly(f"group {self.group.name}: {reason}"))\n', ""),
    )),
    Defect("a fenced primary writes again after a restart", "I16", ("unit:tests/integration/test_transfer_states.py",), (
        Edit(_PRIMARY, "            group.refuse_writes(self._fence_error())\n", "            pass\n"),
    )),
    Defect("hosts may write to a secondary", "I16", ("unit:tests/unit/storage/test_group_rules.py", "unit:tests/integration/test_transfer_states.py"), (
        Edit(_GROUP, "        if self.role is Role.SECONDARY:\n            return ReadOnly(f\"group {self.name} is a secondary",
             "        if self.role is None:\n            return ReadOnly(f\"group {self.name} is a secondary"),
        Edit(_GROUP, "        if self.write_error is not None or self.role is not _PRIMARY or volume.access != \"read-write\":\n"
             "            raise self.refusal or ReadOnly(f\"volume {volume.name} is read-only\")\n        size = length",
             "        if self.write_error is not None or volume.access != \"read-write\":\n"
             "            raise self.refusal or ReadOnly(f\"volume {volume.name} is read-only\")\n        size = length"),
    )),
    Defect("one synchronous pair is suspended without the others", "I5", ("unit:tests/integration/test_transfer_states.py",), (
        Edit(_EVENTS, "        why = f\"{reason} (pair {spec.identity})\"\n", "        affected = [lost]\n        why = f\"{reason} (pair {spec.identity})\"\n"),
    )),
    Defect("a suspension takes effect before it is durable", "I3 I14", (), (
        Edit(_EVENTS, "        active = [pair for pair in affected if pair.active]\n",
             "        for pair in affected:\n            pair._release()\n"
             "        active = [pair for pair in affected if pair.active]\n"),
    )),
    Defect("a restarted mirror is believed to have everything", "I3 I5", (_REGRESSIONS, "unit:tests/integration/test_transfer_takeover.py"), (
        Edit(_PAIRS, "            if lossy and record.role", "            if False and record.role"),
    )),
    Defect("what the old primary has alone is not said", "I13", ("unit:tests/integration/test_transfer_takeover.py",), (
        Edit("controllerd/replication/pair_record.py", "        if not writes:\n            return \"\"\n",
             "        if writes:\n            return \"\"\n"),
    )),
    Defect("ticks while what was lost is in doubt", "I5", (_REGRESSIONS,), (
        Edit(_TIMER, "(not pair.active or pair.record.in_doubt)", "not pair.active"),
    )),
    Defect("half a plan is read", "I5", ("unit:tests/unit/replication/test_applier.py",), (
        Edit("controllerd/replication/applier.py", "        if self._partial and len(self._members) > 1:\n", "        if False:\n"),
    )),
    Defect("numbers are given again after a power loss", "I11", ("unit:tests/unit/storage/test_group_rules.py",), (
        Edit("controllerd/storage/system.py", "            times.pass_lost()\n", "            pass\n"),
    )),
    Defect("a suspended pair has no reason", "I14", ("unit:tests/integration/test_transfer_states.py",), (
        Edit("controllerd/replication/context.py", "        record.reason = reason\n", '        record.reason = ""\n'),
    )),
    Defect("the lag of a cut link does not grow", "I14", ("unit:tests/unit/model/test_lag.py",), (
        Edit("controllerd/model/lag.py", " + round(local_mono_s * _NS) - consistent_ns\n",
             " + round(self._newest_mono_s * _NS) - consistent_ns\n"),
    )),
)  # fmt: skip
