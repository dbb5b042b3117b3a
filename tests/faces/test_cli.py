"""``updatectl`` as a process, against a daemon on a private bus."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bascule.errors import Busy, Exit, NotPermitted, ServerUnreachable, catalogue
from bascule.updater.status import Failure, State
from fake_daemon import CHECKED, SIZE, Daemon

ROOT = Path(__file__).resolve().parents[2]


class Ran:
    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code, self.out, self.err = code, out.decode(), err.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"code {self.code}\n{self.out}\n{self.err}"


async def run(
    address: str, *words: str, module: str = "bascule.faces.cli", **environment: str
) -> Ran:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", module, *words,
        env={"PATH": os.environ["PATH"], "BASCULE_BUS_ADDRESS": address, "TZ": "UTC"}
        | environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    result = Ran(process.returncode or 0, out, err)
    assert "Traceback" not in result.err, result
    return result


# ── looking ──────────────────────────────────────────────────────────────────────────────────


async def test_status_for_people(served: Any) -> None:
    served.steering.move(
        State.DOWNLOADING,
        new_version="3602.1.5",
        new_size=SIZE,
        phase="download",
        bytes_done=SIZE // 2,
        bytes_total=SIZE,
        rate=2e6,
        blocked_by=({"name": "hold", "evidence": "Held until Monday."},),
        warnings=("Checks are overdue.",),
        failure=Failure("transfer", 9, "It broke.", "Try again.", CHECKED),
    )
    ran = await run(served.address, "status")
    assert ran.code == 0, ran
    for piece in (
        "downloading and writing",
        "Download    50%, 22.2 MB of 44.4 MB, 2.0 MB/s, 11 s left",
        "New         3602.1.5 (44.4 MB)",
        "Server      stable at http://update/",
        "Slots       A  3510.2.0  good: boots next     ← running, boots next",
        "Held by     Held until Monday.",
        "Last error  It broke. (2026-11-21 ",
        "Try again.",
        "Warning     Checks are overdue.",
    ):
        assert piece in ran.out, (piece, ran)
    assert "\x1b" not in ran.out, "no colour in a pipe"


async def test_status_as_json_equals_the_bus(served: Any) -> None:
    ran = await run(served.address, "--json", "status")
    document = ran.json
    assert document["schema"] == 1
    assert document["ok"] is True
    assert document["state"] == "IDLE"
    assert document["last_error"] is None
    assert document["job"] is None
    assert [slot["name"] for slot in document["slots"]] == ["A", "B"]
    after = await run(served.address, "status", "--json")
    assert after.json == document, "before or after the verb"


async def test_a_hostile_version_cannot_write_to_the_terminal(served: Any) -> None:
    served.steering.move(new_version="1\x1b]0;owned\x07\x9b31m", warnings=("a\x1b[2Jb\r\nc",))
    ran = await run(served.address, "status")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", ran.out)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"last_checked": 4_000_000_000}, Exit.DONE, ""),
        ({"last_checked": 0}, Exit.FAILED, "has not been reached"),
        ({"last_checked": CHECKED - 10_000_000}, Exit.FAILED, "was 1"),
        (
            {"last_checked": 4_000_000_000, "verdict": "ROLLED_BACK", "sentence": "Back on A."},
            Exit.ROLLED_BACK,
            "Back on A.",
        ),
        (
            {
                "last_checked": 4_000_000_000,
                "failure": Failure("omaha-unreachable", 2000, "No answer.", "x", 1),
            },
            Exit.NETWORK,
            "No answer.",
        ),
    ],
)
async def test_status_check(served: Any, changes: dict[str, Any], code: Exit, words: str) -> None:
    served.steering.move(**changes)
    ran = await run(served.address, "status", "--check")
    assert ran.code == code, ran
    assert words in ran.err


async def test_slots_say_what_boots_next(served: Any) -> None:
    ran = await run(served.address, "slots")
    assert "Slot A boots next; it is the one that is running." in ran.out
    served.steering.move(slots=())
    assert "not known" in (await run(served.address, "slots")).out


async def test_documents_for_people_and_as_json(served: Any) -> None:
    served.steering.documents["quarantine"] = {
        "sentence": "One release is not tried again.",
        "entries": [
            {"version": "3602.1.5", "at": CHECKED, "bytes_fetched": SIZE, "reason": "a\nb"},
            {"version": "3603.0.0", "at": CHECKED, "bytes_fetched": 0, "reason": ""},
        ],
        "policy": {"days": 3, "strict": True},
    }
    ran = await run(served.address, "quarantine")
    assert ran.out == (
        "One release is not tried again.\n"
        "\n"
        "Entries:\n"
        "  Version   At                Bytes fetched  Reason\n"
        "  3602.1.5  2026-11-21 10:37  44.4 MB        a b\n"
        "  3603.0.0  2026-11-21 10:37  0 B            -\n"
        "\n"
        "Policy:\n"
        "  Days: 3\n"
        "  Strict: yes\n"
    )
    ran = await run(served.address, "quarantine", "list", "--json")
    assert ran.json == {"schema": 1, "ok": True, **served.steering.documents["quarantine"]}


async def test_a_document_that_is_not_well_ends_with_a_code(served: Any) -> None:
    served.steering.documents["doctor"] = {"ok": False, "findings": [{"sentence": "bad"}]}
    ran = await run(served.address, "doctor", "--json")
    assert ran.code == Exit.FAILED
    assert ran.json["ok"] is False


# ── steering ─────────────────────────────────────────────────────────────────────────────────


async def test_update_in_a_pipe(served: Any) -> None:
    Daemon(served.steering, "good", 0.002)
    ran = await run(served.address, "update", "--version", "3602.1.5", "--no-reboot")
    assert ran.code == 0, ran
    lines = ran.out.splitlines()
    assert lines[0] in ("Asking the update server", "An update is there; getting ready")
    assert any(
        re.match(r"Downloading 3602\.1\.5: \d+ % \(.* of 44\.4 MB\), 2\.1 MB/s$", x) for x in lines
    )
    assert lines[-1] == "3602.1.5 is installed and boots next. `updatectl reboot` starts it."
    assert "\r" not in ran.out
    assert len(lines) < 20
    verb, options, actor = served.steering.asked[0]
    assert (verb, options) == ("update", {"version": "3602.1.5", "no_reboot": True})
    assert actor.uid == os.getuid()


async def test_update_as_json_prints_one_object(served: Any) -> None:
    Daemon(served.steering, "good", 0.001)
    ran = await run(served.address, "update", "--json")
    assert ran.json["result"] == "done"
    assert ran.json["outcome"] == {"version": "3602.1.5", "slot": "B"}
    assert ran.json["status"]["state"] == "UPDATED_NEED_REBOOT"


async def test_check_and_no_update(served: Any) -> None:
    daemon = Daemon(served.steering, "good", 0.0)
    ran = await run(served.address, "check")
    assert ran.code == 0
    assert ran.out == "3602.1.5 (44.4 MB) is available. `updatectl update` installs it.\n"
    daemon.story = "none"
    served.steering.move(State.IDLE, new_version="")
    ran = await run(served.address, "check")
    assert ran.code == Exit.NO_UPDATE
    assert ran.out == "No update: the server has nothing newer than 3510.2.0.\n"
    ran = await run(served.address, "update", "--json")
    assert ran.code == Exit.NO_UPDATE
    assert ran.json["result"] == "no-update"


async def test_a_failed_update_tells_cause_and_remedy(served: Any) -> None:
    Daemon(served.steering, "bad", 0.0)
    ran = await run(served.address, "update")
    assert ran.code == Exit.NETWORK
    assert ran.err == (
        "updatectl: The download stalled: 17 s without a byte.\n"
        "  Check the network; the download goes on where it stopped.\n"
    )
    served.steering.move(State.IDLE)
    ran = await run(served.address, "update", "--json")
    assert ran.json["ok"] is False
    assert ran.json["error"]["id"] == "transfer-stalled"
    assert ran.json["error"]["context"] == {"url": "http://update/payload.gz"}


async def test_no_wait(served: Any) -> None:
    ran = await run(served.address, "update", "--no-wait")
    assert ran.code == 0
    assert "updatectl watch" in ran.out
    assert served.steering.status.state is State.CHECKING_FOR_UPDATE


async def test_every_refusal_has_its_own_sentence_and_code(served: Any) -> None:
    seen = set()
    for error in (Busy("x"), NotPermitted("x"), ServerUnreachable("x")):
        served.steering.refuse = error
        ran = await run(served.address, "cancel")
        assert ran.code == error.exit
        assert error.cause.rstrip(".") in ran.err
        assert error.remedy in ran.err
        seen.add(ran.code)
    assert len(seen) == 3
    served.face.close()
    served.connection.close()
    ran = await run(served.address, "status")
    assert ran.code == Exit.NO_DAEMON
    assert "is not running" in ran.err
    ran = await run("unix:path=/nowhere/bus", "status", "--json")
    assert ran.code == Exit.NO_DAEMON
    assert ran.json["error"]["id"] == "daemon-not-running"
    assert "/nowhere/bus" in ran.json["error"]["detail"]


async def test_a_broken_off_download_is_not_praised(served: Any) -> None:
    Daemon(served.steering, "bad", 0.001)
    ran = await run(served.address, "update")
    assert "Downloading" in ran.out
    assert "Downloaded" not in ran.out


async def test_a_request_that_only_a_newer_daemon_knows(served: Any) -> None:
    ran = await run(served.address, "doctor", "--json")
    assert ran.code == Exit.NO_DAEMON
    assert ran.json["error"]["id"] == "daemon-version", "not the person's mistake"


async def test_history_for_people(served: Any) -> None:
    served.steering.documents["history"] = {
        "history": [
            {
                "sequence": 1,
                "time": CHECKED,
                "kind": "staged",
                "attempt": "a",
                "actor": {"via": "bus", "uid": 0},
                "facts": {"version": "3602.1.5", "written": SIZE, "apply_s": 61.0, "checks": []},
            },
            {"time": CHECKED, "kind": "attempt-failed", "facts": {"error": {"message": "No.\n"}}},
        ]
    }
    ran = await run(served.address, "history")
    assert ran.out == (
        "2026-11-21 10:37  staged          "
        "version 3602.1.5, written 44.4 MB, apply 1 min 1 s, by user id 0\n"
        "2026-11-21 10:37  attempt-failed  error No.\n"
    )
    served.steering.documents["history"] = {"whole": False, "verify": {"records": 3}}
    assert (await run(served.address, "history", "verify")).code == Exit.FAILED


async def test_config_check(served: Any) -> None:
    from bascule.errors import SettingsError

    served.steering.documents["config"] = {"settings": [], "error": None}
    ran = await run(served.address, "config", "check")
    assert (ran.code, ran.out) == (0, "No mistake was found in the settings.\n")
    error = SettingsError("/etc/bascule/bascule.toml: server.nonsense")
    served.steering.documents["config"] = {"settings": [], "error": error.as_dict()}
    ran = await run(served.address, "config", "check")
    assert ran.code == Exit.SETTINGS
    assert "server.nonsense" in ran.err
    served.steering.documents["config"] = {"problems": ["The window never opens."]}
    ran = await run(served.address, "config", "check", "--json")
    assert ran.code == Exit.SETTINGS
    assert ran.json["problems"] == ["The window never opens."]


async def test_update_from_a_file_or_a_directory(served: Any, tmp_path: Path) -> None:
    served.steering.options |= {"repository", "force_full"}
    payload = tmp_path / "payload.bin"
    payload.write_bytes(b"x")
    await run(served.address, "update", "--no-wait", "--file", str(payload), "--full")
    assert served.steering.asked[-1][1] == {"file": str(payload), "force_full": True}
    served.steering.move(State.IDLE)
    await run(served.address, "update", "--no-wait", "--file", str(tmp_path))
    assert served.steering.asked[-1][1] == {"repository": str(tmp_path)}
    ran = await run(served.address, "update", "--file", "x", "--repository", "http://x/")
    assert ran.code == Exit.USAGE


async def test_errors_of_every_kind_cross_the_bus_unchanged(served: Any) -> None:
    from bascule.faces.bus_client import BusClient

    def ask(client: Any) -> Any:
        try:
            client.call("/org/bascule/Update1", "org.bascule.Update1", "Cancel")
        except Exception as error:
            return error
        return None

    client = await asyncio.to_thread(BusClient, served.address, "org.bascule.Update1")
    for cls in catalogue():
        served.steering.refuse = cls("some detail", figure=3)
        error = await asyncio.to_thread(ask, client)
        assert type(error) is cls
        assert error.as_dict() == cls("some detail", figure=3).as_dict()
    client.close()


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("cancel",), ("cancel", {})),
        (("reset",), ("reset", {})),
        (("reboot",), ("reboot", {})),
        (("activate",), ("act activate", {})),
        (("hold", "--for", "1h30m"), ("act hold", {"seconds": 5400})),
        (("hold", "--indefinite", "--reason", "move"), ("act hold", {"indefinite": True, "reason": "move"})),
        (("hold", "--until", "2100-01-01T00:00+00:00"), ("act hold", {"until": 4102444800})),
        (("hold", "--clear"), ("act hold", {"clear": True})),
        (("pin", ">=3510,<3600"), ("act pin", {"range": ">=3510,<3600"})),
        (("pin", "--clear"), ("act pin", {"clear": True})),
        (("quarantine", "clear", "3602.1.5"), ("act quarantine-clear", {"version": "3602.1.5"})),
        (("explain", "--history"), ("document explain", {"history": True})),
        (("history", "verify"), ("document history", {"verify": True})),
        (("history", "--last", "3"), ("document history", {"limit": 3})),
        (("config", "check"), ("document config", {"check": True})),
        (("plan", "--version", "4"), ("document plan", {"version": "4"})),
        (("list",), ("document list", {})),
        (("hold",), ("document hold", {})),
    ],
)  # fmt: skip
async def test_what_each_verb_asks_for(
    served: Any, words: tuple[str, ...], asked: tuple[str, dict[str, Any]]
) -> None:
    served.steering.move(State.UPDATED_NEED_REBOOT)
    for name in ("explain", "history", "config", "plan", "list", "hold"):
        served.steering.documents[name] = {"sentence": "Well."}
    ran = await run(served.address, *words)
    assert ran.code == 0, ran
    assert served.steering.asked[-1][:2] == asked


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("fly",),
        ("hold", "--for", "soon"),
        ("hold", "--for", "99999999999d"),
        ("hold", "--until", "2001-01-01"),
        ("pin", "--clear", "3"),
        ("update", "--wait", "--no-wait"),
        ("status", "--nonsense"),
    ],
)
async def test_a_wrong_command_line(served: Any, words: tuple[str, ...]) -> None:
    ran = await run(served.address, *words)
    assert ran.code == Exit.USAGE, ran
    ran = await run(served.address, "--json", *words)
    assert ran.code == Exit.USAGE
    assert ran.json["error"]["id"] == "usage"
    assert not served.steering.asked


async def test_a_daemon_that_stops_meanwhile_is_told(served: Any) -> None:
    task = asyncio.create_task(run(served.address, "update"))
    while not served.steering.jobs:
        await asyncio.sleep(0.01)
    served.connection.close()
    ran = await task
    assert ran.code == Exit.NO_DAEMON
    # Which of the two depends on whether it was listening or asking just then.
    assert "stopped in the meantime" in ran.err or "went away during the call" in ran.err


async def test_a_reader_that_has_seen_enough_is_no_error(served: Any) -> None:
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m bascule.faces.cli status --json | head -c 1; echo ${{PIPESTATUS[0]}}",
        executable="/bin/bash",
        env={"PATH": os.environ["PATH"], "BASCULE_BUS_ADDRESS": served.address},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert err == b""
    assert out == b"{0\n"


# ── what is loaded ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", [["status"], ["update", "--help"], ["--help"]])
async def test_updatectl_loads_no_event_loop(served: Any, words: list[str]) -> None:
    program = (
        "import sys\n"
        "from bascule.faces.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.stderr.write(' '.join(sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *words,
        env={"PATH": os.environ["PATH"], "BASCULE_BUS_ADDRESS": served.address},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, err = await process.communicate()
    loaded = set(err.decode().split())
    assert "bascule.faces.cli" in loaded
    assert not loaded & {"asyncio", "dbus_fast", "structlog", "subprocess", "logging", "ssl"}
    assert not {name for name in loaded if name.startswith(("bascule.engine", "bascule.updater"))}


def test_the_password_agent_is_waited_for_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for polkit's pkttyagent, which closes the descriptor once it is registered."""
    from bascule.faces.cli.session import Session, _password_agent

    log = tmp_path / "log"
    script = tmp_path / "pkttyagent"
    script.write_text(
        "#!/bin/bash\n"
        f'echo "$@" > {log}; sleep 0.2; echo registered >> {log}; eval "exec $2>&-"; exec sleep 60\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    agent = _password_agent()
    assert "registered" in log.read_text(), "a question before that would go nowhere"
    assert f"--process {os.getpid()}" in log.read_text()
    session = Session(as_json=False, bus="")
    session._agent = agent
    session.close()
    assert agent.returncode is not None
    script.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _password_agent() is None


@pytest.mark.parametrize("wished", [None, "", "40", " 132 ", "0", "-3", "x", "9" * 5000])
def test_help_is_as_wide_as_python_would_make_it(
    wished: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from bascule.faces.cli import verbs

    monkeypatch.delenv("COLUMNS", raising=False)
    if wished is not None:
        monkeypatch.setenv("COLUMNS", wished)
    monkeypatch.setattr(sys, "__stdout__", None)
    assert verbs._columns() == shutil.get_terminal_size().columns
    monkeypatch.undo()
    assert verbs._columns() > 0
