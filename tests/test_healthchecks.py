"""From what an operator writes in ``[health]`` to a verdict: real sockets, a real program as systemctl."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.engine.health import CheckResult, Host, Outcome, Pace, run
from bascule.errors import SettingsError
from bascule.healthchecks import KINDS, checks_of, left_out, longest_asking, options_of
from bascule.settings import CHECK_OPTIONS, Health, load, merge
from bascule.updater.health_verdict import HealthVerdict, judge
from node import Node

ROOT = Path(__file__).resolve().parents[1]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def health_of(root: Path, body: str, more: str = "") -> Health:
    """The health settings of a host that says `body` in ``[health]``, and `more` in a drop-in."""
    folder = root / "etc/bascule/bascule.toml.d"
    folder.mkdir(parents=True, exist_ok=True)
    # Whatever has no pace of its own is asked once, and patiently.
    general = f'[health]\nroot = "{root}"\ntimeout = "60s"\nretries = 0\ninterval = 0\n'
    (folder.parent / "bascule.toml").write_text(general + body)
    (folder / "50-more.toml").write_text(more)
    return load(root).health


async def judged(
    health: Health, host: Host | None = None
) -> tuple[HealthVerdict, dict[str, CheckResult]]:
    checks = checks_of(health)
    results = await run(checks, host=host, clock=asyncio.get_running_loop().time)
    expected = [check.name for check in checks if check.required]
    return judge(results, expected=expected, now=0, deadline=1), {r.name: r for r in results}


@asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


def answering(*answers: bytes) -> Serve:
    """The answers in turn, and the last one from then on."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    return serve


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.fixture
def refused() -> int:
    """A port on which nothing answers."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def script(root: Path, name: str, body: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


# ── paces and weight ─────────────────────────────────────────────────────────────────────────


async def test_each_check_is_asked_as_often_as_its_own_table_says(
    tmp_path: Path, refused: int
) -> None:
    async with listening(accept) as port:
        health = health_of(
            tmp_path,
            f'tcp = ["127.0.0.1:{port}", "127.0.0.1:{refused}", "localhost:{refused}"]\n'
            f'[health.checks."tcp:127.0.0.1:{refused}"]\nretries = 2\n',
        )
        verdict, results = await judged(health)
    assert {name: r.attempts for name, r in results.items()} == {
        f"tcp:127.0.0.1:{port}": 1,
        f"tcp:127.0.0.1:{refused}": 3,
        f"tcp:localhost:{refused}": 1,
    }
    assert verdict.outcome is Outcome.FAIL
    assert verdict.condemned[0] == f"nothing answers on 127.0.0.1:{refused}"


@pytest.mark.parametrize("required", [True, False])
async def test_what_is_not_required_is_told_and_condemns_nothing(
    tmp_path: Path, refused: int, required: bool
) -> None:
    table = f'[health.checks."tcp:127.0.0.1:{refused}"]\nrequired = {str(required).lower()}\n'
    health = health_of(tmp_path, f'tcp = ["127.0.0.1:{refused}"]\n{table}')
    verdict, _ = await judged(health)
    reason = f"nothing answers on 127.0.0.1:{refused}"
    assert verdict.outcome is (Outcome.FAIL if required else Outcome.PASS)
    assert (verdict.condemned if required else verdict.warnings) == (reason,)


async def test_a_timeout_of_its_own_ends_one_check_only(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with listening(silent) as port:
        url = f"http://127.0.0.1:{port}/"
        health = health_of(
            tmp_path, f'http = ["{url}"]\n[health.checks."{url}"]\ntimeout = "200ms"\n'
        )
        script(tmp_path, "etc/bascule/health.d/10-slow", "exec sleep 0.3")
        _, results = await judged(health)
    assert results[url].reason == f"{url} was still waiting for {url} after 0.2 s"
    assert results["health.d:10-slow"].outcome is Outcome.PASS


async def test_scripts_have_a_pace_of_their_own(tmp_path: Path) -> None:
    for name in ("etc/bascule/health.d/10-a", "etc/bascule/health.d/20-b"):
        script(tmp_path, name, "exit 1")
    script(tmp_path, "usr/lib/greenboot/check/wanted.d/30-c.sh", "exit 1")
    health = health_of(
        tmp_path,
        '[health.checks."health.d:10-a"]\nretries = 2\ninterval = 0\n'
        '[health.checks."greenboot:wanted.d/30-c.sh"]\nretries = 1\ninterval = "1ms"\n',
        # With this pause between two askings the test would not end in time.
        '[health]\ninterval = "1h"\n',
    )
    _, results = await judged(health)
    assert [(r.name, r.required, r.attempts) for r in results.values()] == [
        ("health.d:10-a", True, 3),
        ("health.d:20-b", True, 1),
        ("greenboot:wanted.d/30-c.sh", False, 2),
    ]
    assert left_out(health, names_of(health)) == []


async def test_two_files_may_speak_of_one_check(tmp_path: Path, refused: int) -> None:
    table = f'[health.checks."tcp:127.0.0.1:{refused}"]\n'
    body = f'tcp = ["127.0.0.1:{refused}"]\n{table}retries = 3\nrequired = false\n'
    verdict, results = await judged(health_of(tmp_path, body, f"{table}retries = 1\n"))
    assert [r.attempts for r in results.values()] == [2]
    assert verdict.outcome is Outcome.PASS and verdict.warnings


# ── what only some checks take ───────────────────────────────────────────────────────────────

HELLO = b"HTTP/1.1 200 OK\r\n\r\nthe service is ready"


@pytest.mark.parametrize(
    ("answer", "options", "reason"),
    [
        (HELLO, "", ""),
        (HELLO, 'contains = "is ready"', ""),
        (HELLO, 'contains = "is green"', "does not say 'is green'"),
        (HELLO, "statuses = [200, 204]", ""),
        (HELLO, "statuses = 200", ""),
        (HELLO, "statuses = [201, 204]", "answered 200"),
        (HELLO, 'statuses = [204]\ncontains = "ready"', "answered 200"),
        # A list is what it says: nothing between its ends.
        (b"HTTP/1.1 202 Later\r\n\r\n", "statuses = [200, 204]", "answered 202"),
        (b"HTTP/1.1 202 Later\r\n\r\n", "", ""),
        (b"HTTP/1.1 404 No\r\n\r\n", "", "answered 404"),
        (b"HTTP/1.1 404 No\r\n\r\n", "statuses = [200, 503]", "answered 404"),
        (b"HTTP/1.1 404 No\r\n\r\n", "statuses = [404]", ""),
    ],
)
async def test_what_an_address_must_answer(
    tmp_path: Path, answer: bytes, options: str, reason: str
) -> None:
    async with listening(answering(answer)) as port:
        url = f"http://127.0.0.1:{port}/healthz"
        body = f'http = ["{url}"]\n[health.checks."{url}"]\n{options}\n'
        verdict, results = await judged(health_of(tmp_path, body))
    assert verdict.outcome is (Outcome.FAIL if reason else Outcome.PASS)
    assert results[url].reason.endswith(reason)


async def test_an_address_may_need_its_second_asking(tmp_path: Path) -> None:
    async with listening(answering(b"HTTP/1.1 503 Busy\r\n\r\n", HELLO)) as port:
        url = f"http://127.0.0.1:{port}/"
        body = f'http = ["{url}"]\n[health.checks."{url}"]\nretries = 5\ncontains = "ready"\n'
        verdict, results = await judged(health_of(tmp_path, body))
    assert verdict.outcome is Outcome.PASS
    assert results[url].attempts == 2


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """Of an authority that nobody knows, whose own certificate is in ``ca.pem``."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return server


@pytest.mark.parametrize(
    ("option", "host", "reason"),
    [
        ("", "localhost", "the certificate of localhost"),
        ('ca_file = "{}/ca.pem"', "localhost", ""),
        ('ca_file = "{}/ca.pem"', "127.0.0.1", "the certificate of 127.0.0.1"),
        ('ca_file = "{}/none.pem"', "localhost", "none.pem cannot be used"),
        ("verify = false", "localhost", ""),
        ("verify = false", "127.0.0.1", ""),
        ("verify = true", "localhost", "the certificate of localhost"),
    ],
)
async def test_which_certificate_is_taken(
    tmp_path: Path, certificate: ssl.SSLContext, option: str, host: str, reason: str
) -> None:
    async with listening(answering(HELLO), certificate) as port:
        url = f"https://{host}:{port}/"
        table = f'[health.checks."{url}"]\n{option.format(tmp_path)}\n'
        verdict, _ = await judged(health_of(tmp_path, f'http = ["{url}"]\n{table}'))
    assert verdict.outcome is (Outcome.FAIL if reason else Outcome.PASS)
    assert reason in verdict.reason


@pytest.fixture
def systemctl(tmp_path: Path) -> Host:
    """A host on which web.service was restarted four times, and one unit has failed."""
    path = script(
        tmp_path,
        "bin/systemctl",
        'case "$*" in\n'
        "*list-units*) echo 'backup-3.service loaded failed failed Backup' ;;\n"
        "*) printf '%s\\n' LoadState=loaded ActiveState=active SubState=running NRestarts=4 ;;\n"
        "esac",
    )
    return Host(systemctl=str(path), environment={"PATH": os.environ["PATH"]})


WEB, ALL = 'units = ["web.service"]', "no_failed_units = true"


@pytest.mark.parametrize(
    ("listed", "name", "options", "reason"),
    [
        (WEB, "unit:web.service", "", ""),
        (WEB, "unit:web.service", "max_restarts = 4", ""),
        (WEB, "unit:web.service", "max_restarts = 3", "web.service keeps failing (4 restarts)"),
        (
            WEB,
            "unit:web.service",
            "max_restarts = 0\nretries = 2",
            "web.service keeps failing (4 restarts)",
        ),
        (ALL, "no-failed-units", "", "backup-3.service failed"),
        (ALL, "no-failed-units", 'ignore = ["other.service"]', "backup-3.service failed"),
        (ALL, "no-failed-units", 'ignore = ["other.service", "backup-*"]', ""),
        (ALL, "no-failed-units", 'ignore = "backup-3.service"', ""),
        (ALL, "no-failed-units", "required = false", ""),
    ],
)
async def test_what_may_have_happened_to_units(
    tmp_path: Path, systemctl: Host, listed: str, name: str, options: str, reason: str
) -> None:
    body = f'{listed}\n[health.checks."{name}"]\n{options}\n'
    verdict, _ = await judged(health_of(tmp_path, body), systemctl)
    assert verdict.reason == reason


# ── refusals ─────────────────────────────────────────────────────────────────────────────────

LISTED = 'units = ["a.service"]\ntcp = ["127.0.0.1:22", "[::1]:22"]\nhttp = ["http://x/"]\n'
TCP, UNIT, URL = "tcp:127.0.0.1:22", "unit:a.service", "http://x/"
GREEN, OURS = "greenboot:required.d/10-x.sh", "health.d:10-x"

REFUSED = [
    # What no check has, or not of this kind of value.
    (TCP, "retrys = 1", ".retrys", "timeout, retries, interval, required, max_restarts"),
    (TCP, 'retries = "many"', ".retries", "whole number from 0 to 1000"),
    (TCP, "retries = -1", ".retries", "whole number from 0 to 1000"),
    (TCP, "retries = true", ".retries", "whole number from 0 to 1000"),
    (TCP, 'timeout = "soon"', ".timeout", "must be a duration"),
    (TCP, "interval = -1", ".interval", "zero or more seconds"),
    (TCP, 'required = "no"', ".required", "must be true or false"),
    (UNIT, "max_restarts = 1.5", ".max_restarts", "whole number"),
    (URL, "statuses = []", ".statuses", "such as [200, 204]"),
    (URL, 'statuses = "2xx"', ".statuses", "such as [200, 204]"),
    (URL, "statuses = [200, 99]", ".statuses", "such as [200, 204]"),
    (URL, "contains = 3", ".contains", "must be a string"),
    (URL, 'ca_file = ["/a"]', ".ca_file", "must be a string"),
    (URL, "verify = 0", ".verify", "must be true or false"),
    ("no-failed-units", "ignore = [1]", ".ignore", "must be a string"),
    # What another kind of check has.
    (TCP, 'contains = "ok"', ".contains", "takes timeout, retries, interval, required; remove"),
    (TCP, "max_restarts = 3", ".max_restarts", "takes timeout, retries, interval, required; "),
    ("tcp:::1:22", "statuses = 200", ".statuses", "takes timeout, retries, interval, required; "),
    (UNIT, "verify = false", ".verify", "takes timeout, retries, interval, required, max_restarts"),
    (URL, "ignore = []", ".ignore", "statuses, contains, ca_file, verify; remove"),
    (OURS, 'contains = "ok"', ".contains", "takes timeout, retries, interval; remove"),
    ("unit:b.service", "verify = true", ".verify", "takes timeout, retries, interval, required, "),
    # What no check could be called.
    ("a.service", "", "", "the name of no check: they are called unit:NAME, no-failed-units"),
    ("127.0.0.1:22", "retries = 3", "", "tcp:HOST:PORT"),
    ("greenboot:green.d/10-x.sh", "timeout = 1", "", "greenboot:required.d/NAME"),
    # What its folder says.
    (GREEN, "required = false", ".required", "its folder decides it"),
    (OURS, "required = true", ".required", "its folder decides it"),
]  # fmt: skip


def names_of(health: Health) -> list[str]:
    return [check.name for check in checks_of(health)]


def refusal(root: Path, body: str) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        checks_of(health_of(root, body))
    return caught.value


@pytest.mark.parametrize(("name", "option", "path", "words"), REFUSED)
def test_a_mistake_in_a_table_names_the_key_and_what_to_do(
    tmp_path: Path, name: str, option: str, path: str, words: str
) -> None:
    said = refusal(tmp_path, f'{LISTED}[health.checks."{name}"]\n{option}\n')
    key = f'health.checks."{name}"{path}'
    assert said.context["key"] == key
    assert f"`{key}`" in str(said) and words in str(said)


@pytest.mark.parametrize(
    ("body", "key", "words"),
    [
        ("checks = 3", "health.checks", 'such as [health.checks."tcp:127.0.0.1:22"]'),
        ("checks = []", "health.checks", "must be tables"),
        (f'checks = {{"{TCP}" = 3}}', f'health.checks."{TCP}"', "must be a table"),
        # Dots without quotes make tables of tables.
        ("[health.checks.a.service]", 'health.checks."a".service', "is no option of a check"),
        ('[health.checks."a\\u001b[31m"]', "health.checks", "no check can have that name"),
    ],
)
def test_what_is_no_table_of_a_check(tmp_path: Path, body: str, key: str, words: str) -> None:
    said = refusal(tmp_path, f"{LISTED}{body}\n")
    assert said.context["key"] == key
    assert str(tmp_path / "etc/bascule/bascule.toml") in str(said)
    assert f"`{key}`" in str(said) and words in str(said)
    assert str(said).isprintable()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("retries = 'many'", f'`health.checks."{TCP}".retries` must be a whole number'),
        ("verify = false", f'`health.checks."{TCP}".verify` cannot be set: this check takes'),
    ],
)
def test_bascule_health_says_so_without_a_traceback(
    tmp_path: Path, option: str, words: str
) -> None:
    node = Node(tmp_path / "node", "disabled", "unix:path=/nowhere", keys=tmp_path, slot_mib=2)
    image = tmp_path / "image"
    image.write_bytes(b"FLATCAR_RELEASE_VERSION=1.0.0\n".ljust(8192))
    node.settings = f'[health]\ntcp = ["127.0.0.1:22"]\n[health.checks."{TCP}"]\n{option}\n'
    node.make(image)
    node.power_on(daemon=False)
    done = node.bascule("health")
    assert done.returncode == 7
    assert words in done.stderr
    assert "Traceback" not in done.stderr


# ── tables of checks that are not asked ──────────────────────────────────────────────────────


def test_a_table_of_a_check_that_is_not_asked_is_told_and_no_error(tmp_path: Path) -> None:
    """Releases differ, and so do hosts: no release is given up for a table too many."""
    script(tmp_path, "etc/bascule/health.d/10-here", "exit 0")
    script(tmp_path, "etc/greenboot/check/required.d/20-here.sh", "exit 0")
    asked = ["health.d:10-here", "greenboot:required.d/20-here.sh", UNIT, TCP, "tcp:::1:22", URL]
    not_asked = [
        "health.d:11-gone",
        "greenboot:required.d/21-gone.sh",
        "greenboot:wanted.d/20-here.sh",
        "tcp:127.0.0.1:23",
        "unit:b.service",
        "no-failed-units",
        "http://x",
    ]
    tables = "".join(f'[health.checks."{n}"]\nretries = 4\n' for n in [*asked, *not_asked])
    health = health_of(tmp_path, LISTED + tables)
    assert {check.name: check.pace.retries for check in checks_of(health)} == dict.fromkeys(
        asked, 4
    )
    assert left_out(health, names_of(health)) == [
        f'`health.checks."{name}"` has no effect, because no such check is asked here'
        for name in not_asked
    ]
    without = dataclasses.replace(health, greenboot=False)
    assert asked[1] not in [check.name for check in checks_of(without)]
    assert len(left_out(without, names_of(without))) == len(not_asked) + 1


# ── properties ───────────────────────────────────────────────────────────────────────────────

VALUES: Mapping[str, st.SearchStrategy[Any]] = {
    "timeout": st.integers(0, 10**6),
    "retries": st.integers(0, 1000),
    "interval": st.integers(0, 10**6),
    "required": st.booleans(),
    "max_restarts": st.integers(0, 1000),
    "ignore": st.lists(st.sampled_from(["a", "b-*"])),
    "statuses": st.lists(st.integers(100, 599), min_size=1),
    "contains": st.sampled_from(["", "ok"]),
    "ca_file": st.sampled_from(["", "/ca.pem"]),
    "verify": st.booleans(),
}
TABLE = st.fixed_dictionaries({}, optional=dict(VALUES))
EVERY = {
    "units": ["a.service"],
    "no_failed_units": True,
    "tcp": ["127.0.0.1:22"],
    "http": ["http://x/"],
}
NAMES = {
    "unit:NAME": "unit:a.service",
    "no-failed-units": "no-failed-units",
    "tcp:HOST:PORT": "tcp:127.0.0.1:22",
    "http://…": "http://x/",
    "health.d:NAME": "health.d:10-x",
    "greenboot:wanted.d/NAME": "greenboot:wanted.d/20-y.sh",
}


@pytest.fixture(scope="module")
def root() -> Any:
    with tempfile.TemporaryDirectory(prefix="health-") as folder:
        script(Path(folder), "etc/bascule/health.d/10-x", "exit 0")
        script(Path(folder), "etc/greenboot/check/wanted.d/20-y.sh", "exit 0")
        yield Path(folder)


def merged(root: Path, checks: Mapping[str, Any], **general: Any) -> Health:
    return merge(
        [("f.toml", {"health": {**EVERY, **general, "root": str(root), "checks": checks}})]
    ).health


def test_every_option_can_be_drawn_and_belongs_to_some_check() -> None:
    assert set(VALUES) == set(CHECK_OPTIONS)
    assert {option for kind in KINDS.values() for option in options_of(kind)} == set(CHECK_OPTIONS)
    assert set(NAMES) <= set(KINDS)


@settings(deadline=None)
@given(
    kind=st.sampled_from(sorted(NAMES)),
    fitting=st.booleans(),
    table=TABLE,
    pace=st.tuples(st.integers(0, 999), st.integers(0, 1000), st.integers(0, 999)),
)
def test_a_table_is_in_force_as_a_whole_or_refused_by_name(
    root: Path, kind: str, fitting: bool, table: dict[str, Any], pace: tuple[int, int, int]
) -> None:
    """And no other check is touched by it."""
    if fitting:
        table = {key: table[key] for key in table if key in options_of(KINDS[kind])}
    general = dict(zip(("timeout", "retries", "interval"), pace, strict=True))
    plain = {check.name: check for check in checks_of(merged(root, {}, **general))}
    health = merged(root, {NAMES[kind]: table}, **general)
    strange = [option for option in table if option not in options_of(KINDS[kind])]
    if strange:
        with pytest.raises(SettingsError) as caught:
            checks_of(health)
        keys = [f'health.checks."{NAMES[kind]}".{option}' for option in strange]
        assert caught.value.context["key"] in keys
        return
    found = {check.name: check for check in checks_of(health)}
    changed: Any = found.pop(NAMES[kind])
    before: Any = plain.pop(NAMES[kind])
    assert found == plain
    told = health.checks[NAMES[kind]]
    assert changed.pace == Pace(**{key: told.get(key, general[key]) for key in general})
    for field in dataclasses.fields(changed):
        if field.name != "pace":
            assert getattr(changed, field.name) == told.get(field.name, getattr(before, field.name))


@settings(deadline=None)
@given(
    tables=st.dictionaries(
        st.sampled_from(sorted(NAMES.values())),
        st.fixed_dictionaries({}, optional={k: VALUES[k] for k in ("timeout", "retries")}),
    ),
    general=st.integers(0, 10**6),
)
def test_no_attempt_takes_longer_than_the_longest(
    root: Path, tables: dict[str, Any], general: int
) -> None:
    health = merged(root, tables, timeout=general)
    runs = [check.pace.timeout for check in checks_of(health)]
    assert longest_asking(health) == max(general, *runs)


# ── what is printed elsewhere ────────────────────────────────────────────────────────────────


def test_the_guides_example_is_taken_as_it_stands(tmp_path: Path) -> None:
    guide = (ROOT / "docs/operators-guide.md").read_text()
    found = re.search(r"### Checks that differ\n.*?```toml\n(.*?)```", guide, re.DOTALL)
    assert found
    (tmp_path / "etc/bascule").mkdir(parents=True)
    (tmp_path / "etc/bascule/bascule.toml").write_text(found[1])
    health = dataclasses.replace(load(tmp_path).health, root=str(tmp_path))
    checks = {check.name: check for check in checks_of(health)}
    assert set(health.checks) == {*checks, "health.d:10-database"}
    assert checks["unit:myapp.service"].pace == Pace(10, 30, 10)
    assert [name for name, check in checks.items() if not check.required] == ["tcp:127.0.0.1:22"]


def test_so_is_every_example_for_etc() -> None:
    examples = sorted((ROOT / "systemd/examples").glob("*.toml"))
    assert examples
    for path in examples:
        checks_of(load(Path("/nowhere"), [path]).health)
