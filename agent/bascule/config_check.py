"""``config check``: settings that are valid one by one, and do not do what somebody meant.

Files are read, certificates and keys are parsed: this runs in the errand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bascule.assembly import DISABLED, Assembly
from bascule.errors import BasculeError
from bascule.settings import Settings
from bascule.updater.status import Status


def problems(assembly: Assembly, now: float) -> list[str]:
    """One sentence for each, beginning with the setting's name. Blocks."""
    found: list[str] = []
    for look in (_clock, _parts, _health, _addresses, _trust, _pairs, _idle, _outdated):
        try:
            found += look(assembly, now)
        except BasculeError as error:
            found.append(error.detail or str(error))
    return list(dict.fromkeys(found))


def _clock(assembly: Assembly, now: float) -> Iterator[str]:
    """Windows and schedules that never come."""
    from bascule.circumstances import Circumstances

    schedule = Circumstances(lambda: assembly, Status, lambda: None, lambda: now).schedule()
    for problem in schedule.problems(now):
        yield f"`{problem.setting}`: {problem.sentence}"


def _parts(assembly: Assembly, now: float) -> Iterator[str]:
    """What is only made when it is needed: coordinator, TLS."""
    from bascule.circumstances import Circumstances
    from bascule.engine.transport import Tls

    settings = assembly.settings
    server = settings.server
    made: tuple[Callable[[], object], ...] = (
        Circumstances(lambda: assembly, Status, lambda: None, time.time).coordinator,
        Tls(server.ca_file, server.client_certificate, server.client_key).context,
    )
    for make in made:
        try:
            make()
        except BasculeError as error:
            yield error.detail or str(error)


def _health(assembly: Assembly, now: float) -> Iterator[str]:
    """Checks that cannot be made, what they cannot use, and tables of none of them."""
    from bascule.engine.health import HttpProbe
    from bascule.healthchecks import checks_of, idle_tables

    health = assembly.settings.health
    checks = checks_of(health)
    for check in checks:
        if isinstance(check, HttpProbe) and check.ca_file:
            try:
                check.tls()
            except OSError as error:
                yield f"`health.checks`: {check.ca_file} cannot be used ({error})."
    yield from (f"{idle}." for idle in idle_tables(health, [check.name for check in checks]))


def _addresses(assembly: Assembly, now: float) -> Iterator[str]:
    server = assembly.settings.server
    if server.url != DISABLED and not _is_http(server.url):
        yield f"`server.url`: {server.url!r} is neither an http address nor `disabled`."
    where = server.repository
    if where and not _is_http(where) and not where.startswith(("/", "file:")):
        yield f"`server.repository`: {where!r} is neither an address nor an absolute path."
    download = assembly.settings.download
    if download.user and _is_http(server.url) and not server.url.startswith("https:"):
        yield "`download.user` is sent over https only, and `server.url` is not an https address."


def _is_http(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _trust(assembly: Assembly, now: float) -> Iterator[str]:
    from bascule.engine.trust import read_keyring

    trust = assembly.settings.trust
    found = read_keyring(Path(trust.keys))
    if not found.keys:
        why = "; ".join(found.faults) or "there is no key in it"
        yield f"`trust.keys`: nothing can be proven, so nothing is installed: {why}."
    else:
        yield from (f"`trust.keys`: {fault}." for fault in found.faults)
    if "openpgp" in trust.require:
        if not trust.openpgp_keyring:
            yield "`trust.require` asks for openpgp, but `trust.openpgp_keyring` names no keyring."
        elif not Path(trust.openpgp_keyring).is_file():
            yield f"`trust.openpgp_keyring`: there is no {trust.openpgp_keyring}."


def _pairs(assembly: Assembly, now: float) -> Iterator[str]:
    """Settings that make sense together only."""
    settings = assembly.settings
    reboot, server = settings.reboot, settings.server
    if server.client_key and not server.client_certificate:
        yield "`server.client_key` is of no use without `server.client_certificate`."
    if reboot.key and not reboot.certificate:
        yield "`reboot.key` is of no use without `reboot.certificate`."
    if bool(reboot.window_start) != bool(reboot.window_length):
        yield "`reboot.window_start` and `reboot.window_length` are of use together only."
    if reboot.late_units and not reboot.late_window:
        yield "`reboot.late_units` are not watched, because `reboot.late_window` is 0."
    if bool(settings.slots.a) != bool(settings.slots.b):
        yield "`slots.a` and `slots.b` must both be given, or neither."


def _idle(assembly: Assembly, now: float) -> Iterator[str]:
    """Settings without effect because of others."""
    settings = assembly.settings
    set_ = settings.origins
    windows = [n for n in ("windows", "window_start") if f"reboot.{n}" in set_]
    if settings.reboot.strategy == "off" and windows and getattr(settings.reboot, windows[0]):
        yield f"`reboot.{windows[0]}` has no effect, because `reboot.strategy` is off."
    if settings.policy.schedule and "check.interval" in set_:
        yield "`check.interval` has no effect, because `policy.schedule` says when to check."
    if settings.policy.mode in ("none", "check") and settings.download.windows:
        yield (
            f"`download.windows` has no effect, because `policy.mode` is {settings.policy.mode}."
        )
    if settings.server.repository and settings.server.url != DISABLED and "server.url" in set_:
        yield "`server.url` is not asked, because `server.repository` takes its place."
    if settings.metrics.mode == "off" and settings.metrics.path:
        yield "`metrics.path` has no effect, because `metrics.mode` is off."


DEPRECATED = {
    "reboot.window_start": "`reboot.windows` says the same, several times if need be, with a zone",
    "reboot.window_length": "`reboot.windows` says the same, several times if need be, with a zone",
}
"""Settings that are read for what Flatcar's files say; in our own there is something better."""


def _outdated(assembly: Assembly, now: float) -> Iterator[str]:
    settings: Settings = assembly.settings
    for name, better in DEPRECATED.items():
        if settings.origins.get(name, "").endswith(".toml"):
            yield f"`{name}` is outdated: {better}."
    yield from settings.notes
