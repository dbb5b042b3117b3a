"""One run of ``updatectl``: its options, its connection, and how it speaks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from bascule.errors import (
    AnswerNotUnderstood,
    BasculeError,
    DaemonTooOld,
    Exit,
    OutputLost,
    UsageError,
)
from bascule.faces.cli.text import Paint, printable
from bascule.faces.streams import flush, silence

if TYPE_CHECKING:
    from bascule.faces.bus_client import BusClient

__all__ = ["INTERFACE", "PATH", "SCHEMA", "Session"]

NAME = "org.bascule.Update1"
PATH = "/org/bascule/Update1"
INTERFACE = "org.bascule.Update1"

SCHEMA = 1
"""Version of everything that ``--json`` prints; a member is never given another meaning."""


_NOT_KNOWN = ("unknown document", "unknown verb", "unknown option")

NEEDED = (
    *("State", "Since", "Sentence", "Verdict", "CurrentVersion", "NewVersion", "NewSize"),
    *("Group", "Server", "LastChecked", "NextCheck", "LastUpdated", "Phase", "Progress"),
    *("BytesDone", "BytesTotal", "BytesSkipped", "Rate", "Eta", "Slots", "LastError"),
    *("Quarantine", "BlockedBy", "Warnings", "Job"),
)
"""The daemon's properties that the commands cannot do without."""


class Session:
    """What every verb is given.

    Attributes:
        json: whether ``--json`` was asked for.
        now: the clock, unix seconds.
    """

    def __init__(self, *, as_json: bool, bus: str) -> None:
        self.json = as_json
        self.now = time.time
        self.paint = Paint(sys.stdout)
        self._address = bus
        self._client: BusClient | None = None
        self._agent: Any = None

    @property
    def client(self) -> BusClient:
        """The connection, made when it is first needed."""
        if self._client is None:
            from bascule.faces.bus_client import BusClient

            self._client = BusClient(self._address, NAME, interactive=self._may_ask())
        return self._client

    @property
    def local(self) -> bool:
        """Whether the daemon is on this very host, as far as one can tell: no other bus was named."""
        return not self._address and not os.environ.get("BASCULE_BUS_ADDRESS")

    def reconnect(self) -> None:
        """Forget the connection; the next use makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _may_ask(self) -> bool:
        return os.geteuid() != 0 and sys.stdin is not None and sys.stdin.isatty()

    def steer(self, member: str, signature: str = "", *body: Any) -> str:
        """Call a steering method; polkit may ask for a password on this terminal.

        Raises:
            AnswerNotUnderstood: it was not answered with a string.
        """
        if self._may_ask() and self._agent is None:
            self._agent = _password_agent()
        answer = self._ask(member, signature, *body)
        if not answer or not isinstance(answer[0], str):
            raise AnswerNotUnderstood(f"{member} was answered with {answer!r}")
        return answer[0]

    def job(self, member: str, signature: str = "", *body: Any) -> tuple[str, int]:
        """Call a method that starts a job; returns its path and number."""
        path = self.steer(member, signature, *body)
        number = path.rpartition("/")[2]
        if not number.isdecimal():
            raise AnswerNotUnderstood(f"{member} was answered with {path!r}")
        return path, int(number)

    def _ask(self, member: str, signature: str, *body: Any) -> list[Any]:
        try:
            return self.client.call(PATH, INTERFACE, member, signature, body)
        except UsageError as error:
            # What this program asks for by itself is not the person's mistake.
            if error.detail.startswith(_NOT_KNOWN):
                raise DaemonTooOld(error.detail) from error
            raise

    def status(self) -> dict[str, Any]:
        """All properties of the daemon, as they are called on the bus.

        Raises:
            DaemonTooOld: one that the commands need is not among them.
        """
        properties = self.client.properties(PATH, INTERFACE)
        if missing := [name for name in NEEDED if name not in properties]:
            raise DaemonTooOld(f"it does not tell {', '.join(missing)}")
        return properties

    def document(self, name: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A read document of the daemon.

        Raises:
            AnswerNotUnderstood: it is not JSON.
            DaemonTooOld: its schema is not one that this program knows.
        """
        import json

        from bascule.faces.bus_client import options as wired

        (text,) = self._ask("Document", "sa{sv}", name, wired(options or {}))
        try:
            document = json.loads(text)
        except ValueError as error:
            raise AnswerNotUnderstood(f"the document {name} is not JSON") from error
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise DaemonTooOld(f"the document {name} has a schema that is not {SCHEMA}")
        return document

    def say(self, text: str = "") -> None:
        """A line for people, on stdout; nothing under ``--json``."""
        if not self.json:
            _write(sys.stdout, text if self.paint.on else printable(text))

    def hint(self, text: str) -> None:
        """A line for people, on stderr, so that a pipe does not carry it."""
        if self.json:
            return
        try:
            _write(sys.stderr, printable(text))
        except (BrokenPipeError, OutputLost):
            silence(sys.stderr)

    def result(self, value: Mapping[str, Any], ok: bool = True) -> None:
        """The answer under ``--json``; nothing otherwise."""
        if self.json:
            _write(sys.stdout, _json({"schema": SCHEMA, "ok": ok, **value}, indent=2))

    def line(self, value: Mapping[str, Any]) -> None:
        """One of several answers under ``--json``: an object per line, sent at once."""
        if self.json:
            _write(sys.stdout, _json({"schema": SCHEMA, **value}))

    def fail(self, error: BasculeError) -> Exit:
        """Tell of an error as it should be told; returns the exit code."""
        if self.json:
            self.result({"error": error.as_dict()}, ok=False)
        else:
            paint = Paint(sys.stderr)
            sentence = printable(str(error))
            if not sentence.endswith((".", "!", "?")):
                sentence += "."
            _write(sys.stderr, paint.bad("updatectl: ") + sentence)
            _write(sys.stderr, f"  {printable(error.remedy)}")
        return error.exit

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._agent is not None:
            self._agent.terminate()
            self._agent.wait()


def _json(value: Mapping[str, Any], indent: int | None = None) -> str:
    import json

    return json.dumps(value, indent=indent)


def _write(stream: TextIO, text: str) -> None:
    flush(stream, text + "\n")


def _password_agent() -> Any:
    """polkit's text agent for this process, as systemctl starts it; None where there is none."""
    import subprocess

    read, write = os.pipe()
    try:
        agent = subprocess.Popen(
            ["pkttyagent", "--notify-fd", str(write), "--fallback", "--process", str(os.getpid())],
            pass_fds=[write],
            # It asks on the terminal itself; where there is no polkit, its complaint is no help.
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        agent = None
    finally:
        os.close(write)
    if agent is not None:
        # It closes the descriptor when it is registered, or when it fails.
        os.read(read, 1)
    os.close(read)
    return agent
