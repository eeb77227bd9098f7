"""Every route of the management API, over the ASGI interface, on real storage and remembered pairs."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from controllerd.management.schemas import VERSION
from controllerd.model.errors import (
    BadOrder,
    Busy,
    Conflict,
    Corrupt,
    DiskFailed,
    JournalFailed,
    MirrorLost,
    NoSpace,
    NotAuthorised,
    NotFound,
    Overflow,
    ReadOnly,
    RemoteCopyError,
    Trimmed,
    Unreachable,
    WouldBlock,
)
from tests.unit.management.fake_controller import FakeController


async def make_volume(api: httpx.AsyncClient, name: str = "v1", group: str = "g1") -> dict[str, Any]:
    await api.post("/v1/disks", json={"name": "d1", "size": "16MiB"})
    await api.post("/v1/pools", json={"name": "p", "disks": ["d1"]})
    await api.post("/v1/groups", json={"name": group})
    answer = await api.post("/v1/volumes", json={"name": name, "size": "8MiB", "pool": "p", "group": group})
    assert answer.status_code == 201, answer.text
    volume: dict[str, Any] = answer.json()
    return volume


def pair_order(role: str = "primary", **changes: Any) -> dict[str, Any]:
    volumes = [{"primary": "v1", "secondary": "v1", "key": 7, "size": 8 << 20}]
    return {"group": "g1", "role": role, "peer": "B", "peer_group": "g1", "volumes": volumes, **changes}


async def test_system_says_who_it_is(api: httpx.AsyncClient) -> None:
    answer = (await api.get("/v1/system")).json()
    assert (answer["name"], answer["serial"], answer["version"]) == ("A", 1001, VERSION)
    assert answer["uptime_s"] == 60
    (peer,) = answer["peers"]
    assert peer == {"name": "B", "address": "127.0.0.1:9813", "serial": 1002, "connected": True, "reason": ""}
    assert answer["faults"] == []


async def test_config_is_given_as_the_controller_hides_it(api: httpx.AsyncClient) -> None:
    assert (await api.get("/v1/config")).json()["management"]["token"] == "**********"


async def test_disk_pool_group_volume_from_nothing_to_nothing(api: httpx.AsyncClient) -> None:
    volume = await make_volume(api)
    assert (volume["size"], volume["allocated"], volume["writable"]) == (8 << 20, 0, True)
    disks = (await api.get("/v1/disks")).json()
    assert [(disk["name"], disk["size"], disk["pool"]) for disk in disks] == [("d1", 16 << 20, "p")]
    assert disks[0]["path"].endswith("/disks/d1")
    pool = (await api.get("/v1/pools")).json()[0]
    assert (pool["size"], pool["free"], pool["provisioned"]) == (16 << 20, 16 << 20, 8 << 20)
    assert [item["name"] for item in (await api.get("/v1/volumes")).json()] == ["v1"]
    assert (await api.get("/v1/groups/g1")).json()["volumes"] == ["v1"]
    assert [item["name"] for item in (await api.get("/v1/groups")).json()] == ["g1"]
    resized = await api.patch("/v1/volumes/v1", json={"size": "12MiB"})
    assert resized.json()["size"] == 12 << 20
    assert (await api.delete("/v1/groups/g1")).status_code == 409
    assert (await api.delete("/v1/volumes/v1")).json()["done"] is True
    assert (await api.get("/v1/volumes/v1")).status_code == 404
    assert (await api.delete("/v1/groups/g1")).status_code == 200


async def test_thin_volume_is_made_with_a_warning(api: httpx.AsyncClient) -> None:
    await make_volume(api)
    answer = await api.post("/v1/volumes", json={"name": "big", "size": "1GiB", "pool": "p", "group": "g1"})
    assert answer.status_code == 201
    assert len(answer.json()["warnings"]) == 1


class FakeSession:
    """A host's session that remembers what it was told."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.rechecked = 0
        self.aborted: list[str] = []

    def describe(self) -> dict[str, Any]:
        peer = f"127.0.0.1:{self.number}"
        return {"id": self.number, "protocol": "nbd", "peer": peer, "read_only": False, "opened": 1}

    def recheck(self) -> None:
        self.rechecked += 1

    def abort(self, reason: str) -> None:
        self.aborted.append(reason)


async def test_open_sessions_are_shown(api: httpx.AsyncClient, controller: FakeController) -> None:
    await make_volume(api)
    session = FakeSession(5)
    controller.storage.volumes["v1"].sessions.add(session)
    (shown,) = (await api.get("/v1/volumes/v1")).json()["sessions"]
    assert (shown["id"], shown["peer"], shown["tls"], shown["certificate"]) == (5, "127.0.0.1:5", None, [])
    assert (await api.get("/v1/system")).json()["sessions"] == 1
    assert (await api.delete("/v1/volumes/v1")).status_code == 409


async def test_one_session_is_closed_by_order(api: httpx.AsyncClient, controller: FakeController) -> None:
    await make_volume(api)
    first, second = FakeSession(5), FakeSession(6)
    controller.storage.volumes["v1"].sessions |= {first, second}
    assert (await api.delete("/v1/volumes/v1/sessions/4")).status_code == 404
    assert (await api.delete("/v1/volumes/v1/sessions/6")).status_code == 200
    assert (first.aborted, second.aborted) == ([], ["disconnected by order"])


async def test_rules_about_hosts_are_kept_and_shown(api: httpx.AsyncClient, controller: FakeController) -> None:
    await make_volume(api)
    session = FakeSession(5)
    controller.storage.volumes["v1"].sessions.add(session)
    assert (await api.get("/v1/volumes/v1")).json()["allow"] is None
    rules = [{"network": "10.0.0.0/8"}, {"certificate": "DB1.example", "read_only": True}, {"network": "unix"}]
    answer = await api.put("/v1/volumes/v1/allow", json={"allow": rules})
    shown = [
        {"network": "10.0.0.0/8", "certificate": None, "read_only": False},
        {"network": None, "certificate": "db1.example", "read_only": True},
        {"network": "unix", "certificate": None, "read_only": False},
    ]
    assert answer.json()["allow"] == shown
    assert session.rechecked == 1
    assert controller.storage.catalogue.get_documents("volume")["v1"]["allow"] == shown
    await api.patch("/v1/volumes/v1", json={"size": "12MiB"})
    assert controller.storage.catalogue.get_documents("volume")["v1"]["allow"] == shown
    for bad in ("10.0.0.1/8", "everybody", ""):
        refused = await api.put("/v1/volumes/v1/allow", json={"allow": [{"network": bad}]})
        assert refused.status_code == 400, bad
    assert (await api.put("/v1/volumes/v1/allow", json={})).status_code == 422
    assert (await api.put("/v1/volumes/v1/allow", json={"allow": []})).json()["allow"] == []
    assert (await api.put("/v1/volumes/v1/allow", json={"allow": None})).json()["allow"] is None
    assert (await api.put("/v1/volumes/nothing/allow", json={"allow": None})).status_code == 404


async def test_volume_is_made_with_its_rules(api: httpx.AsyncClient) -> None:
    await make_volume(api)
    order = {"name": "v2", "size": "8MiB", "pool": "p", "group": "g1", "allow": []}
    assert (await api.post("/v1/volumes", json=order)).json()["allow"] == []


async def test_checkpoint_is_taken(api: httpx.AsyncClient) -> None:
    before = (await api.get("/v1/system")).json()["checkpoints"]
    assert (await api.post("/v1/system/checkpoint")).status_code == 200
    assert (await api.get("/v1/system")).json()["checkpoints"] == before + 1


async def test_pair_is_created_once_listed_suspended_and_deleted(api: httpx.AsyncClient) -> None:
    await make_volume(api)
    assert (await api.post("/v1/pairs", json=pair_order())).status_code == 201
    assert (await api.post("/v1/pairs", json=pair_order())).status_code == 200
    assert [pair["state"] for pair in (await api.get("/v1/pairs")).json()] == ["PAIR"]
    assert (await api.delete("/v1/groups/g1")).json()["message"].startswith("group g1 is in a pair with B:g1")
    assert (await api.post("/v1/pairs/g1/suspend")).json()["state"] == "PSUS"
    assert [pair["peer"] for pair in (await api.get("/v1/pairs/g1")).json()] == ["B"]
    assert (await api.get("/v1/pairs/nowhere")).status_code == 404
    assert (await api.delete("/v1/pairs/g1", params={"role": "secondary"})).status_code == 404
    assert (await api.delete("/v1/pairs/g1", params={"role": "primary", "peer": "B"})).status_code == 200
    assert (await api.get("/v1/pairs/g1")).json() == []


async def test_status_has_pairs_and_groups_without_one(api: httpx.AsyncClient) -> None:
    await make_volume(api)
    await api.post("/v1/groups", json={"name": "alone"})
    await api.post("/v1/pairs", json=pair_order("secondary"))
    answer = (await api.get("/v1/status")).json()
    assert [(entry["group"], entry["state"]) for entry in answer["groups"]] == [("g1", "PAIR"), ("alone", "SMPL")]
    entry = answer["groups"][0]
    assert entry["lag_s"] == 1.5
    assert entry["arrived"] == {"seq": None, "time": None}
    assert entry["holder"] == "g2"


async def test_takeover_previews_without_doing(api: httpx.AsyncClient, controller: FakeController) -> None:
    await make_volume(api)
    assert (await api.get("/v1/takeover")).status_code == 404
    await api.post("/v1/pairs", json=pair_order("secondary"))
    preview = (await api.get("/v1/takeover", params={"domain": "default"})).json()
    assert preview["preview"] is True
    assert controller.pairs.taken_over == []
    done = (await api.post("/v1/takeover", json={"domain": "default"})).json()
    assert (done["preview"], done["rto_s"]) == (False, 0.5)
    assert controller.pairs.taken_over == ["default"]


async def test_metrics_are_prometheus_text(api: httpx.AsyncClient) -> None:
    await make_volume(api)
    await api.post("/v1/pairs", json=pair_order())
    text = (await api.get("/metrics")).text
    assert 'remotecopy_volume_size_bytes{volume="v1"} 8.388608e+06' in text
    assert 'remotecopy_pair_lag_seconds{group="g1",peer="B",role="primary"} 1.5' in text
    assert 'remotecopy_pair_state{group="g1",peer="B",role="primary",state="PAIR"} 1.0' in text
    assert "remotecopy_pair_arrived_sequence{" not in text, "what is not known is left out"
    assert "remotecopy_checkpoints_total" in text


async def test_openapi_describes_every_order(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json", headers={"Authorization": ""})).json()
    assert {"/v1/system", "/v1/volumes/{name}", "/v1/pairs", "/v1/takeover", "/metrics"} <= set(document["paths"])


ERRORS = [
    (BadOrder, 400),
    (NotAuthorised, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Busy, 503),
    (WouldBlock, 503),
    (Unreachable, 502),
    (NoSpace, 507),
    (ReadOnly, 409),
    (JournalFailed, 500),
    (DiskFailed, 500),
    (Corrupt, 500),
    (MirrorLost, 409),
    (Overflow, 409),
]


@pytest.mark.parametrize(("kind", "status"), ERRORS, ids=lambda value: getattr(value, "__name__", ""))
async def test_every_kind_of_error_has_one_shape(
    api: httpx.AsyncClient, controller: FakeController, kind: type[RemoteCopyError], status: int
) -> None:
    controller.pairs.fail = kind("what is\nwrong", group="g1", odd={1, 2}, deep=[[[[[[3]]]]]])
    answer = await api.post("/v1/pairs", json=pair_order())
    assert answer.status_code == status
    body = answer.json()
    assert set(body) == {"code", "message", "details"}
    assert body["code"] == kind.code
    assert body["message"] == "what is wrong"
    assert body["details"]["group"] == "g1"


async def test_trimmed_is_a_conflict(api: httpx.AsyncClient, controller: FakeController) -> None:
    controller.pairs.fail = Trimmed(17)
    answer = await api.post("/v1/pairs", json=pair_order())
    assert (answer.status_code, answer.json()["details"]) == (409, {"first_available": 17})


async def test_unexpected_error_says_where_to_look_and_nothing_else(
    api: httpx.AsyncClient, controller: FakeController
) -> None:
    async def explode(_order: object) -> None:
        raise RuntimeError("secret of the inside")

    controller.pairs.create = explode  # type: ignore[assignment,method-assign]
    answer = await api.post("/v1/pairs", json=pair_order())
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text


INVALID: list[tuple[str, Any, str]] = [
    ("/v1/volumes", {}, "name: Field required"),
    ("/v1/volumes", {"name": "v", "size": "1XB", "pool": "p", "group": "g"}, '"1XB" is not a size'),
    ("/v1/volumes", {"name": "v", "size": 1, "pool": "p", "group": "g"}, "size: "),
    ("/v1/volumes", {"name": "../v", "size": 4096, "pool": "p", "group": "g"}, "name: "),
    ("/v1/volumes", {"name": "v", "size": 4096, "pool": "p", "group": "g", "colour": 1}, "colour: unknown field"),
    ("/v1/volumes", [], "valid dictionary"),
    ("/v1/disks", {"name": "d", "size": -1}, "size: "),
    ("/v1/disks", {"name": "d", "size": 1e400}, ""),
    ("/v1/groups", {"name": "g", "durability": "maybe"}, "durability: "),
    ("/v1/pools", {"name": "p", "disks": []}, "disks: "),
    ("/v1/pairs", pair_order(volumes=[]), "volumes: "),
    ("/v1/pairs", pair_order(sync_timeout_s=0), "sync_timeout_s: "),
    ("/v1/takeover", {"domain": "a:b"}, "domain: "),
]


@pytest.mark.parametrize(("path", "body", "expected"), INVALID)
async def test_invalid_body_is_refused_in_one_line(api: httpx.AsyncClient, path: str, body: Any, expected: str) -> None:
    import json

    answer = await api.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid-request"
    assert expected in answer.json()["message"]
    assert "\n" not in answer.json()["message"]


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", b"[" * 4000, b'{"name": ' + b"9" * 4000 + b"}", b"NaN", b'{"name": "\\ud800"}', b""],
    ids=["cut", "bytes", "deep", "digits", "nan", "surrogate", "empty"],
)
async def test_any_body_gets_an_answer(api: httpx.AsyncClient, content: bytes) -> None:
    answer = await api.post("/v1/groups", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["code"] == "invalid-request"


@pytest.mark.parametrize("path", ["/", "/v2/system", "/v1/volumes/..%2f..%2fetc", "/v1/volumes/" + "x" * 3000])
async def test_unknown_path_gets_the_same_shape(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.get(path)
    assert answer.status_code in (404, 422)
    assert set(answer.json()) == {"code", "message", "details"}


async def test_wrong_method_gets_the_same_shape(api: httpx.AsyncClient) -> None:
    answer = await api.put("/v1/volumes")
    assert (answer.status_code, answer.json()["code"]) == (405, "method-not-allowed")


async def test_order_goes_on_when_its_caller_has_gone(api: httpx.AsyncClient, controller: FakeController) -> None:
    started, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    finish = controller.pairs.takeover

    async def slow(domain: str) -> Any:
        started.set()
        await release.wait()
        answer = await finish(domain)
        ended.set()
        return answer

    await make_volume(api)
    await api.post("/v1/pairs", json=pair_order("secondary"))
    controller.pairs.takeover = slow  # type: ignore[method-assign]
    caller = asyncio.create_task(api.post("/v1/takeover", json={}))
    await started.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    release.set()
    await asyncio.wait_for(ended.wait(), 10)
    assert controller.pairs.taken_over == ["default"]


async def test_takeover_does_not_wait_for_another_order(api: httpx.AsyncClient, controller: FakeController) -> None:
    release = asyncio.Event()

    async def stuck(group: str, role: object, peer: object, *, force: bool = False) -> None:
        await release.wait()

    await make_volume(api)
    await api.post("/v1/pairs", json=pair_order("secondary"))
    controller.pairs.delete = stuck  # type: ignore[method-assign]
    waiting = asyncio.create_task(api.delete("/v1/pairs/g1"))
    await asyncio.sleep(0)
    assert (await api.post("/v1/takeover", json={})).status_code == 200
    release.set()
    assert (await waiting).status_code == 200


async def test_failing_checkpoint_is_a_fault_until_one_works(
    api: httpx.AsyncClient, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DiskFailed("catalogue: database or disk is full")

    await make_volume(api)
    checkpointer = controller.storage.checkpointer
    with monkeypatch.context() as broken:
        broken.setattr(controller.storage.catalogue, "checkpoint", full)
        checkpointer.request()
        async with asyncio.timeout(10):
            while not checkpointer.fault:  # noqa: ASYNC110  # a background task finds it
                await asyncio.sleep(0.01)
        for path in ("/v1/system", "/v1/status"):
            (fault,) = (await api.get(path)).json()["faults"]
            assert "no checkpoint" in fault
            assert "disk is full" in fault
    await checkpointer.checkpoint()
    assert (await api.get("/v1/system")).json()["faults"] == []


async def test_held_group_is_forgotten_with_its_volumes_and_pairs(
    api: httpx.AsyncClient, controller: FakeController
) -> None:
    await make_volume(api)
    await api.post("/v1/pairs", json=pair_order())
    answer = await api.post("/v1/groups/g1/forget")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    controller.storage.groups["g1"].hold(Corrupt("journal record 7 is damaged"))
    answer = await api.post("/v1/groups/g1/recover")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "restart" in answer.json()["message"]
    answer = await api.post("/v1/groups/g1/forget")
    assert answer.json() == {
        "group": "g1",
        "volumes": ["v1"],
        "pairs": [{"pair_id": "pair-g1", "role": "primary", "peer": "B", "peer_group": "g1", "told": False}],
    }
    for path in ("/v1/groups", "/v1/volumes", "/v1/pairs"):
        assert (await api.get(path)).json() == []
    assert (await api.post("/v1/groups/g1/forget")).status_code == 404
    assert (await api.post("/v1/groups/g1/recover")).status_code == 404
