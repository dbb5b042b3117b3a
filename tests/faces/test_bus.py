"""``org.bascule.Update1`` on a real bus."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from dbus_fast import MessageType, Variant
from dbus_fast.unpack import unpack_variants

from bascule.errors import BasculeError, Busy, ServerHttpError, catalogue, from_dict
from bascule.faces.bus import INTERFACE, NAME, PATH, BusFace, introspection_xml
from bascule.faces.bus_connection import BusConnection
from bascule.faces.bus_shown import JOB_SHOWN, SHOWN
from bascule.updater.status import Failure, State
from bus_fixture import PrivateBus
from bus_listener import Listener
from fake_daemon import tell
from fake_steering import FakeSteering

EVERYTHING = f"type='signal',path_namespace='{PATH}'"


async def update1(listener: Listener, member: str, signature: str = "", *body: Any) -> Any:
    reply = await listener.call(NAME, PATH, INTERFACE, member, signature, list(body))
    assert reply.message_type is MessageType.METHOD_RETURN, reply.body
    return reply.body[0]


async def properties(listener: Listener, path: str, interface: str) -> dict[str, Any]:
    reply = await listener.call(
        NAME, path, "org.freedesktop.DBus.Properties", "GetAll", "s", [interface]
    )
    values: dict[str, Any] = unpack_variants(reply.body[0])
    return values


async def test_every_fact_of_status_is_a_property(served: Any) -> None:
    listener = await Listener.open(served.address)
    served.steering.move(
        State.DOWNLOADING,
        bytes_done=10,
        bytes_total=40,
        rate=5.0,
        failure=Failure("transfer", 9, "no", "again", 7),
        blocked_by=({"id": "hold", "until": 5, "evidence": ["a"], "nothing": None},),
        warnings=("old",),
        extra={"deep": {"list": [1, 2.5, "x"]}, "big": 1 << 63},
    )
    values = await properties(listener, PATH, INTERFACE)
    assert values.keys() == {entry.name for entry in SHOWN}
    assert values["State"] == "DOWNLOADING"
    assert values["Progress"] == 0.25
    assert values["Eta"] == 6
    assert values["LastError"] == {
        "id": "transfer",
        "number": 9,
        "message": "no",
        "remedy": "again",
        "at": 7,
    }
    assert values["BlockedBy"] == [{"id": "hold", "until": 5, "evidence": ["a"]}]
    assert values["Extra"] == {"deep": {"list": [1, 2.5, "x"]}, "big": 1 << 63}
    assert [slot["name"] for slot in values["Slots"]] == ["A", "B"]
    listener.close()


async def test_status_and_properties_do_not_drift_apart() -> None:
    """A field added to Status must be shown."""
    from dataclasses import fields

    from bascule.updater.status import Status

    shown = {entry.name.lower() for entry in SHOWN}
    renamed = {"failure": "lasterror"}
    for field in fields(Status):
        name = field.name.replace("_", "")
        assert renamed.get(field.name, name) in shown, field.name


async def test_a_job_from_the_call_to_its_end(served: Any) -> None:
    listener = await Listener.open(served.address, EVERYTHING)
    path = await update1(listener, "Update", "a{sv}", {"version": Variant("s", "3602.1.5")})
    assert path == f"{PATH}/job/1"
    verb, options, actor = served.steering.asked[-1]
    assert (verb, options) == ("update", {"version": "3602.1.5"})
    assert (actor.via, actor.uid, actor.pid) == ("bus", os.getuid(), os.getpid())
    assert actor.sender == listener.bus.unique_name
    assert (await properties(listener, PATH, INTERFACE))["Job"] == path

    await tell(served.steering, served.steering.jobs[0])
    await listener.until(lambda: bool(listener.named("Finished")))
    assert listener.named("Finished") == [["done", "", ""]]
    job = await properties(listener, path, INTERFACE + ".Job")
    assert job.keys() == {entry.name for entry in JOB_SHOWN}
    assert (job["State"], job["Result"], job["Kind"]) == ("ended", "done", "update")
    assert job["Outcome"] == {"version": "3602.1.5", "slot": "B"}
    assert (await properties(listener, PATH, INTERFACE))["Job"] == "/"
    listener.close()


async def test_whoever_hears_finished_finds_everything_settled(served: Any) -> None:
    """PropertiesChanged of daemon and job come before Finished."""
    listener = await Listener.open(served.address, EVERYTHING)
    path = await update1(listener, "Check")
    job = served.steering.jobs[0]
    served.steering.move(State.IDLE, last_checked=5)
    served.steering.end(job, "no-update")
    await listener.until(lambda: bool(listener.named("Finished")))
    members = [(p, m) for p, m, _ in listener.signals]
    end = members.index((path, "Finished"))
    heard: dict[str, Any] = {}
    for where, member, body in listener.signals[:end]:
        if member == "PropertiesChanged":
            heard |= {f"{where} {key}": value for key, value in body[1].items()}
    assert heard[f"{PATH} State"] == "IDLE"
    assert heard[f"{PATH} LastChecked"] == 5
    assert heard[f"{PATH} Job"] == "/"
    assert heard[f"{path} State"] == "ended"
    listener.close()


async def test_progress_is_gathered_and_states_are_not(bus_address: str) -> None:
    steering = FakeSteering()
    connection = BusConnection(bus_address)
    # So long that it never runs out here: only what is prompt may be heard.
    face = BusFace(steering, connection, progress_interval=3600.0)
    await connection.connect([NAME])
    listener = await Listener.open(bus_address, EVERYTHING)
    steering.move(State.DOWNLOADING, bytes_total=1000)
    await listener.until(lambda: len(listener.named("PropertiesChanged")) == 1)
    for done in range(1000):
        steering.move(bytes_done=done, bytes_written=done)
        await asyncio.sleep(0)
    await listener.settle()
    assert len(listener.named("PropertiesChanged")) == 1
    steering.move(State.FINALIZING)
    await listener.until(lambda: len(listener.named("PropertiesChanged")) == 2)
    _, changed, _ = listener.named("PropertiesChanged")[1]
    assert changed["State"] == "FINALIZING"
    assert changed["BytesDone"] == 999, "what was gathered goes along"
    assert "Slots" not in changed, "what is as before is not sent"
    face.close()
    connection.close()
    listener.close()


async def test_errors_are_named_say_what_to_do_and_can_be_rebuilt(served: Any) -> None:
    listener = await Listener.open(served.address)
    for error in (Busy("a download", job=3), ServerHttpError("http://x", status=503)):
        served.steering.refuse = error
        reply = await listener.call(NAME, PATH, INTERFACE, "Cancel")
        assert reply.message_type is MessageType.ERROR
        assert reply.error_name == error.bus_name()
        (text,) = reply.body
        assert error.detail in text
        assert error.remedy in text
        rebuilt = from_dict(json.loads(await update1(listener, "Refusal")))
        assert type(rebuilt) is type(error)
        assert rebuilt.as_dict() == error.as_dict()
        assert await update1(listener, "Refusal") == "{}", "told once"
    listener.close()


async def test_a_refusal_is_told_to_whom_it_was_given(served: Any) -> None:
    listener, other = await Listener.open(served.address), await Listener.open(served.address)
    served.steering.refuse = Busy("secret")
    await listener.call(NAME, PATH, INTERFACE, "Cancel")
    assert await update1(other, "Refusal") == "{}"
    assert "secret" in await update1(listener, "Refusal")
    for client in (listener, other):
        client.close()


async def test_the_unforeseen_is_answered_without_a_traceback(
    served: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = await Listener.open(served.address)
    served.steering.refuse = ZeroDivisionError("secret path")  # type: ignore[assignment]
    reply = await listener.call(NAME, PATH, INTERFACE, "Cancel")
    assert reply.error_name == BasculeError.bus_name()
    assert "secret" not in "".join(reply.body)
    assert "Traceback" not in "".join(reply.body)
    assert "secret path" in capsys.readouterr().out, "the log has it"
    listener.close()


def test_every_error_has_a_valid_bus_name() -> None:
    from dbus_fast.validators import is_interface_name_valid

    names = [cls.bus_name() for cls in catalogue()]
    assert len(names) == len(set(names))
    for name in names:
        assert is_interface_name_valid(name), name


async def test_documents_are_json_with_a_schema(served: Any) -> None:
    listener = await Listener.open(served.address)
    served.steering.documents["history"] = {"entries": [{"at": 1, "text": "a\ud800b\0c"}]}
    text = await update1(listener, "Document", "sa{sv}", "history", {"last": Variant("i", 3)})
    assert json.loads(text)["schema"] == 1
    assert served.steering.asked[-1][:2] == ("document history", {"last": 3})
    listener.close()


async def test_old_jobs_are_forgotten_and_young_ones_kept(served: Any) -> None:
    listener = await Listener.open(served.address)
    for _ in range(40):
        await update1(listener, "Check")
        served.steering.end(served.steering.jobs[-1], "no-update")
        served.steering.move(State.IDLE)
    assert (await properties(listener, f"{PATH}/job/40", INTERFACE + ".Job"))["Number"] == 40
    assert (await properties(listener, f"{PATH}/job/25", INTERFACE + ".Job"))["Number"] == 25
    gone = await listener.call(
        NAME, f"{PATH}/job/24", "org.freedesktop.DBus.Properties", "GetAll", "s", ["x.Y"]
    )
    assert gone.message_type is MessageType.ERROR
    listener.close()


async def test_the_connection_comes_back_when_the_bus_restarts(
    served: Any, bus: PrivateBus
) -> None:
    keeper = asyncio.create_task(served.connection.stay())
    await asyncio.sleep(0)
    bus.stop()
    served.steering.move(State.DOWNLOADING, bytes_total=10, bytes_done=1)
    while served.connection.connected:
        await asyncio.sleep(0.01)
    served.steering.move(bytes_done=2)
    bus.start()
    back = asyncio.Event()
    served.connection.on_connect(back.set)
    async with asyncio.timeout(20):
        await back.wait()
    listener = await Listener.open(bus.address)
    assert (await properties(listener, PATH, INTERFACE))["BytesDone"] == 2
    reply = await listener.call(
        "com.coreos.update1", "/com/coreos/update1", "com.coreos.update1.Manager", "GetStatus"
    )
    assert reply.body[2] == "UPDATE_STATUS_DOWNLOADING"
    keeper.cancel()
    listener.close()


async def test_every_member_is_documented(served: Any) -> None:
    from xml.etree import ElementTree

    listener = await Listener.open(served.address)
    reply = await listener.call(
        NAME, PATH, "org.freedesktop.DBus.Introspectable", "Introspect", "", []
    )
    listener.close()
    for text in (reply.body[0], introspection_xml()):
        node = ElementTree.fromstring(text)
        interfaces = [i for i in node if i.get("name", "").startswith(INTERFACE)]
        assert interfaces
        for interface in interfaces:
            for member in interface:
                docs = [a for a in member.iter("annotation") if "DocString" in a.get("name", "")]
                assert docs, member.get("name")
                assert str(docs[0].get("value")).rstrip().endswith("."), member.get("name")
                for arg in member.iter("arg"):
                    assert arg.get("name"), member.get("name")
