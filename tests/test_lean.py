"""What processes load at their start, counted in modules, and that nothing is missing later."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bascule.__main__ import _plain_run

ROOT = Path(__file__).resolve().parents[1]

DAEMON = """
import json, sys
from bascule import lean
lean.start()
import bascule.daemon, bascule.engine.layout, bascule.engine.boot.gpt
print(json.dumps([name for name, module in sys.modules.items() if module is not None]))
"""
ERRAND = """
import json, sys
from bascule import lean
lean.plain_tracebacks()
import bascule.errand
print(json.dumps([name for name, module in sys.modules.items() if module is not None]))
"""
CLI = """
import json, sys
import bascule.faces.cli, bascule.faces.cli.verbs
bascule.faces.cli.verbs.parse(["status"])
print(json.dumps([name for name, module in sys.modules.items() if module is not None]))
"""
TLS = """
import sys
from bascule import lean
EARLY = sys.argv[2] == "early"
if EARLY:
    import ssl
lean.start()
import asyncio, asyncio.sslproto
assert ("ssl" in sys.modules) == EARLY, "asyncio has loaded ssl"
lean.start()
import hashlib
assert hashlib.sha256(b"abc").hexdigest().startswith("ba7816bf")

async def main():
    import ssl, trustme
    authority = trustme.CA()
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(here)
    there = ssl.create_default_context()
    authority.configure_trust(there)

    async def answer(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=here)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=there)
    writer.write(b"through tls\\n")
    assert await reader.readline() == b"through tls\\n"
    writer.close()
    server.close()
    from bascule.engine.coordination.registry import Credentials
    assert isinstance(Credentials().tls(), ssl.SSLContext)

asyncio.run(main())
"""

DATACLASSES = """
import dataclasses, sys
compiled = []
plain = dataclasses._create_fn
dataclasses._create_fn = lambda name, *a, **k: compiled.append(name) or plain(name, *a, **k)
from bascule import lean
lean.start()
lean.start()

@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Point:
    x: int
    y: list[int] = dataclasses.field(default_factory=list, compare=False)
    z: dataclasses.InitVar[int] = 3

    def __post_init__(self, z):
        object.__setattr__(self, "y", [*self.y, z])

assert compiled == [], compiled
one, two = Point(1), Point(x=2, z=4)
assert (one.y, two.y) == ([3], [4])
assert compiled == ["__init__"], compiled
assert repr(one) == "Point(x=1, y=[3])"
assert one == Point(1, z=9) != two and hash(one) == hash(Point(1)) and one < two
assert dataclasses.replace(one, x=5, z=1) == Point(5)
for wrong in (lambda: Point(), lambda: Point(1, q=2)):
    try:
        wrong()
    except TypeError as error:
        assert "__init__()" in str(error), error
    else:
        raise AssertionError
for change in (lambda: setattr(one, "x", 2), lambda: delattr(one, "x")):
    try:
        change()
    except dataclasses.FrozenInstanceError:
        pass
    else:
        raise AssertionError
assert compiled.count("__init__") == 1, "compiled once, not at each call"
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT / "agent",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(code: str) -> set[str]:
    return set(json.loads(run(code)))


HEAVY = {
    "aiohttp", "cryptography", "google", "gnupg", "brotli", "backports", "defusedxml", "rich",
    "better_exceptions", "yaml", "jeepney", "unittest", "multiprocessing",
}  # fmt: skip
DECODERS = {"lzma", "bz2", "shutil", "tempfile", "ctypes", "ssl", "_ssl", "_hashlib"}


def tops(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_the_idle_daemon_loads_what_it_needs_while_it_waits() -> None:
    """30 MB are few: one careless import at the top of a module costs more than a feature."""
    modules = loaded(DAEMON)
    assert not tops(modules) & (HEAVY | DECODERS | {"fractions", "decimal"})
    for room in ("stream", "apply", "fetch", "transport", "openpgp", "decode", "verify"):
        assert f"bascule.engine.{room}" not in modules
    for room in ("hands", "errand", "tools.payload", "updater.attempt", "faces.cli"):
        assert f"bascule.{room}" not in modules
    assert len(modules) < 345


def test_an_errand_begins_without_what_only_some_errands_need() -> None:
    """It asks first; most answers are "nothing new"."""
    modules = loaded(ERRAND)
    assert not tops(modules) & (HEAVY - {"multiprocessing"})
    assert "bascule.engine.stream" not in modules
    assert len(modules) < 300


def test_updatectl_loads_little() -> None:
    """A command that is typed often starts in a blink."""
    modules = loaded(CLI)
    assert not tops(modules) & (HEAVY | DECODERS | {"asyncio", "structlog", "dbus_fast"})
    assert not any(name.startswith(("bascule.engine", "bascule.updater")) for name in modules)
    assert len(modules) < 120


@pytest.mark.parametrize("when", ["late", "early"])
def test_tls_works_after_a_lean_start(when: str) -> None:
    """asyncio was imported without `ssl`, and gets it with the first import of `ssl`."""
    pytest.importorskip("trustme")
    run(TLS, when)


@pytest.mark.skipif(not hasattr(dataclasses, "_create_fn"), reason="this Python compiles otherwise")
def test_methods_of_dataclasses_are_compiled_when_they_are_called() -> None:
    """And are what they would have been: the daemon's CPU to READY is a third less for it."""
    run(DATACLASSES)


def test_what_systemd_starts_needs_no_parser() -> None:
    assert _plain_run([]) == (Path("/"), [])
    given = ["--config", "a", "--root", "/r", "--config", "b"]
    assert _plain_run(given) == (Path("/r"), [Path("a"), Path("b")])
    for odd in (["--root"], ["--help"], ["--root=/r"], ["--root", "--config"], ["-x", "y"], ["x"]):
        assert _plain_run(odd) is None
