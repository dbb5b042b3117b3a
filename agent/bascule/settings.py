"""Configuration fragments → one frozen Settings that knows where each value came from.

Layers, lowest first: built-in defaults, Flatcar's ``update.conf`` family (reference 6.1), the block
``kairos.upgrade`` of Kairos's cloud-config files, then
``/usr/lib/bascule``, ``/run/bascule`` and ``/etc/bascule``: in each, ``bascule.toml`` and after it
``bascule.toml.d/*.toml`` by name. A drop-in of a higher directory hides one of the same name lower
down, as systemd's do. An unknown section or key is an error that names file and key.

A later layer's value takes the place of an earlier one's, lists and tables as a whole. Only in
``health.checks`` every option of every check is a value of its own, with its own origin.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bascule.errors import SettingsError

SIZE_LIMIT = 1 << 20

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|sec|m|min|h|d|w)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])(i?)B?|B)?", re.ASCII | re.IGNORECASE)


def seconds(value: object) -> float:
    """``90``, ``"90s"``, ``"1h30m"`` → seconds. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < 1e10:
            raise ValueError("must be zero or more seconds")
        return float(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError('must be a duration such as "45m" or "1h30m"')
    total, position, text = 0.0, 0, value.strip()
    while position < len(text):
        match = _DURATION.match(text, position)
        if not match:
            raise ValueError('must be a duration such as "45m" or "1h30m"')
        total += float(match[1]) * _SECONDS[match[2] or "s"]
        position = match.end()
        while position < len(text) and text[position] == " ":
            position += 1
    if total >= 1e10:
        raise ValueError("is longer than a lifetime")
    return total


def size(value: object) -> int:
    """``4096``, ``"64MiB"``, ``"2G"`` → bytes; K, M, G, T are powers of 1024. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        count = value
    else:
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if not match or len(match[1]) > 20:
            raise ValueError('must be a size such as "64MiB"')
        count = int(match[1]) << (10 * " KMGT".index((match[2] or " ").upper()))
    if count >= 1 << 63:
        raise ValueError("is larger than any disk")
    return count


def text(value: object) -> str:
    """A string of one line. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("must be a string")
    if any((c < " " and c != "\t") or c == "\x7f" for c in value):
        raise ValueError("must be one line without control characters")
    return value


def flag(value: object) -> bool:
    """true or false. Raises ValueError."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def integer(low: int, high: int) -> Callable[[object], int]:
    """An integer within bounds."""

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return parse


def choice(*words: str) -> Callable[[object], str]:
    """One of `words`."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return str(value)

    return parse


def texts(value: object) -> tuple[str, ...]:
    """A list of strings, or one string."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list of strings")
    return tuple(text(v) for v in value)


def text_table(value: object) -> Mapping[str, str]:
    """A table of strings."""
    if not isinstance(value, Mapping):
        raise ValueError("must be a table of strings")
    return {str(k): text(v) for k, v in value.items()}


def tables(value: object) -> tuple[Mapping[str, Any], ...]:
    """A list of tables, read further by the part that they are for."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(v, Mapping) for v in value):
        raise ValueError("must be a list of tables")
    return tuple(dict(v) for v in value)


def statuses(value: object) -> tuple[int, ...]:
    """A list of HTTP statuses, or one. Raises ValueError."""
    given = value if isinstance(value, list | tuple) else (value,)
    try:
        found = tuple(integer(100, 599)(v) for v in given)
    except ValueError:
        found = ()
    if not found:
        raise ValueError("must be a list of statuses from 100 to 599, such as [200, 204]")
    return found


class CheckOption(NamedTuple):
    """What one key in the table of a health check holds.

    Attributes:
        parse: raises ValueError.
        doc: one sentence.
        unit: of a number; "" where there is none.
    """

    parse: Callable[[object], Any]
    doc: str
    unit: str = ""


CHECK_OPTIONS: Mapping[str, CheckOption] = {
    "timeout": CheckOption(seconds, "Longest run of one attempt.", "seconds"),
    "retries": CheckOption(integer(0, 1000), "Times that it is asked again until it passes."),
    "interval": CheckOption(seconds, "Pause before it is asked again.", "seconds"),
    "required": CheckOption(flag, "false: its failure is reported and condemns no boot."),
    "max_restarts": CheckOption(
        integer(0, 1000), "Automatic restarts that are still well; any number where absent."
    ),
    "ignore": CheckOption(texts, "Units that may have failed, by name or shell pattern."),
    "statuses": CheckOption(
        statuses, "Every status that is well, such as [200, 204]; 200 to 399 where absent."
    ),
    "contains": CheckOption(text, "Text that must occur in the first 64 KiB of the body."),
    "ca_file": CheckOption(text, "PEM bundle that https trusts besides the system's."),
    "verify": CheckOption(flag, "false: any certificate is taken."),
}
"""What ``[health.checks."NAME"]`` may say of a check; which check takes what is decided by its kind."""


class _Deeper(ValueError):
    """What is wrong inside a setting; `path` follows the setting's name."""

    def __init__(self, path: str, sentence: str) -> None:
        super().__init__(sentence)
        self.path = path


def check_path(name: str, option: str = "") -> str:
    """What follows ``health.checks`` in the name of a check's table, or of an option there."""
    return f'."{name}".{option}' if option else f'."{name}"'


def check_tables(value: object) -> Mapping[str, Mapping[str, Any]]:
    """A table of options for each check. Raises ValueError."""
    if not isinstance(value, Mapping):
        raise ValueError('must be tables, such as [health.checks."tcp:127.0.0.1:22"]')
    return {str(name): _check_table(str(name), table) for name, table in value.items()}


def _check_table(name: str, table: object) -> Mapping[str, Any]:
    if not name.isprintable():
        raise ValueError(f"has a table {name!r}, and no check can have that name")
    if not isinstance(table, Mapping):
        raise _Deeper(check_path(name), "must be a table")
    options = {}
    for option, value in table.items():
        path = check_path(name, option)
        if option not in CHECK_OPTIONS:
            known = ", ".join(CHECK_OPTIONS)
            raise _Deeper(path, f"is no option of a check (they are {known}): correct or remove it")
        try:
            options[option] = CHECK_OPTIONS[option].parse(value)
        except ValueError as error:
            raise _Deeper(path, str(error)) from None
    return options


def _s(
    parse: Callable[[object], Any], default: Any, doc: str, unit: str = "", *, nested: bool = False
) -> Any:
    """A setting. `nested`: tables in a table, of which each value has a layer of its own."""
    metadata = {"parse": parse, "doc": doc, "unit": unit, "nested": nested}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Server:
    """Whom to ask, and as whom."""

    url: str = _s(
        text,
        "https://public.update.flatcar-linux.net/v1/update/",
        "Address of the Omaha service; `disabled` switches checks off.",
    )
    group: str = _s(text, "stable", "Channel or group, Omaha's `track`.")
    app_id: str = _s(
        text, "{e96281a6-d1af-4bde-9a0a-97b76e56dc57}", "Omaha application id, braces included."
    )
    version: str = _s(text, "", "Running release; read from the release files where empty.")
    board: str = _s(
        text,
        "",
        "Omaha's `board`, from which Nebraska takes the architecture; read from the release files where empty.",
    )
    machine_alias: str = _s(text, "", "A name for this host that the server shows.")
    ca_file: str = _s(text, "", "PEM bundle of certificate authorities; the system's where empty.")
    client_certificate: str = _s(text, "", "PEM client certificate for server and downloads.")
    client_key: str = _s(text, "", "PEM key of the client certificate.")
    repository: str = _s(
        text, "", "Directory or URL of a static repository, asked instead of Omaha."
    )


@dataclass(frozen=True, slots=True)
class Check:
    """When to ask."""

    first: float = _s(
        seconds,
        420.0,
        "Delay of the first check after start, ± half of `fuzz`; with `spread` the least of that, and then anywhere in an interval.",
        "seconds",
    )
    interval: float = _s(
        seconds, 2700.0, "Time between checks, ± 5 minutes; the server may ask for more.", "seconds"
    )
    fuzz: float = _s(seconds, 600.0, "Width of the random spread around both.", "seconds")
    spread: bool = _s(
        flag,
        True,
        "Draw the first check from a whole interval after `first` less half of `fuzz`, so that hosts that start together do not ask together; false: `first` ± half of `fuzz`, as update_engine does.",
    )


@dataclass(frozen=True, slots=True)
class Download:
    """How to fetch."""

    user: str = _s(text, "", "HTTP user for the payload, sent over https only.")
    password: str = _s(text, "", "HTTP password for the payload.")
    retry_wait: float = _s(
        seconds, 20.0, "Pause before a dropped download is taken up again.", "seconds"
    )
    connect_timeout: float = _s(seconds, 30.0, "Longest wait for a connection.", "seconds")
    stall_time: float = _s(
        seconds, 90.0, "A download slower than `stall_rate` for this long is given up.", "seconds"
    )
    stall_rate: int = _s(size, 10, "Slowest acceptable rate.", "bytes per second")
    rate_limit: int = _s(size, 0, "Highest rate, 0 for none.", "bytes per second")
    budget: int = _s(
        size, 0, "Data that may be fetched in a calendar month, 0 for no limit.", "bytes"
    )
    windows: tuple[str, ...] = _s(
        texts, (), "Windows in which payloads may be fetched; always where empty."
    )
    deltas: bool = _s(
        flag,
        False,
        "Tell the server that deltas are welcome; one that does not fit is replaced by a full payload.",
    )
    metered: bool = _s(flag, False, "Fetch payloads over metered links too.")


@dataclass(frozen=True, slots=True)
class Policy:
    """How far to go by itself."""

    mode: str = _s(
        choice("none", "check", "stage", "apply"),
        "apply",
        "none: never ask; check: ask and report; stage: install and wait; apply: install and reboot as `reboot` says.",
    )
    schedule: tuple[str, ...] = _s(
        texts,
        (),
        "Times at which to check, as five-field cron or systemd calendar expressions, instead of `check.interval`.",
    )
    allow_downgrade: bool = _s(flag, False, "Take releases older than the version floor.")
    workers: int = _s(
        integer(0, 16), 0, "Threads that decode; 0 for one per processor, four at most."
    )
    stale_after: float = _s(
        seconds, 14 * 86400.0, "Warn when no check has succeeded for this long; 0 never.", "seconds"
    )
    battery_floor: int = _s(
        integer(0, 100),
        0,
        "Do not install or reboot on battery below this charge; 0 off.",
        "percent",
    )
    load_ceiling: int = _s(
        integer(0, 100),
        0,
        "Do not install while PSI `some avg60` for CPU, memory or I/O is above this; 0 off.",
        "percent",
    )


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the two slots are."""

    disk: str = _s(
        text, "", "Disk or disk image that holds the slots; found from the booted slot where empty."
    )
    type_guid: str = _s(
        text, "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6", "GPT type GUID of the slots' partitions."
    )
    booted: str = _s(
        choice("", "A", "B"),
        "",
        "The booted slot, where it cannot be found from the mounts or the kernel command line.",
    )
    booted_file: str = _s(text, "", "File whose content names the booted slot (demo and tests).")
    a: Mapping[str, str] = _s(
        text_table, {}, "Parts of slot A: part name → device, file or `partition:N`."
    )
    b: Mapping[str, str] = _s(text_table, {}, "Parts of slot B.")
    sector_size: int = _s(
        integer(0, 4096), 0, "Logical sector size; asked of the device where 0.", "bytes"
    )
    kernel: str = _s(
        choice("auto", "none"),
        "auto",
        "auto: kernels in /boot/flatcar (or /boot/coreos); none: payloads with a kernel are refused unless mapped.",
    )


@dataclass(frozen=True, slots=True)
class Boot:
    """How a slot becomes the next boot."""

    backend: str = _s(
        choice("gpt", "systemd-boot"),
        "gpt",
        "gpt: priority, tries and successful in the partition table; systemd-boot: boot counting in the entries' names.",
    )
    tries: int = _s(integer(1, 15), 1, "Boots that a new release gets to prove itself.")
    esp: str = _s(
        text,
        "",
        "systemd-boot: mount point of the partition that holds `loader/entries`; where empty, the first of /efi, /boot/efi and /boot that has it.",
    )
    entry_a: str = _s(
        text,
        "",
        "systemd-boot: file name of slot A's entry, without counters; where both are empty, the two that end in `-a.conf` and `-b.conf`.",
    )
    entry_b: str = _s(text, "", "systemd-boot: file name of slot B's entry, without counters.")
    efivars: str = _s(
        text,
        "/sys/firmware/efi/efivars",
        "systemd-boot: directory of the firmware's variables.",
    )


@dataclass(frozen=True, slots=True)
class Trust:
    """What proves a payload."""

    keys: str = _s(
        text,
        "/usr/share/update_engine/update-payload-key.pub.pem",
        "Public key (PEM), or a directory of them; read when a payload is proven.",
    )
    require: tuple[str, ...] = _s(
        texts, ("rsa",), "Proofs that a payload must carry: rsa, signed-metadata, openpgp."
    )
    match: str = _s(
        choice("all", "any"), "all", "Whether all proofs of `require` must hold, or any of them."
    )
    openpgp_keyring: str = _s(text, "", "Binary OpenPGP keyring for `<payload>.DIGESTS.asc`.")
    signed_index: bool = _s(
        flag,
        True,
        "A static repository's index must carry a signature of a trusted key; without one, whoever holds the medium can hide a release or put a new number on an old one.",
    )


@dataclass(frozen=True, slots=True)
class Health:
    """What makes a boot good."""

    units: tuple[str, ...] = _s(texts, (), "Units that must be active.")
    no_failed_units: bool = _s(
        flag, False, "No unit may have failed that had not failed before the update."
    )
    greenboot: bool = _s(flag, True, "Run greenboot's check directories.")
    tcp: tuple[str, ...] = _s(texts, (), "Each host:port that must accept a connection.")
    http: tuple[str, ...] = _s(
        texts, (), "URLs that must answer 2xx or 3xx, or as their tables say."
    )
    checks: Mapping[str, Mapping[str, Any]] = _s(
        check_tables,
        {},
        'What one check does otherwise than the rest: a table for each, `[health.checks."NAME"]`, see below.',
        nested=True,
    )
    timeout: float = _s(seconds, 60.0, "Longest run of one check.", "seconds")
    retries: int = _s(integer(0, 1000), 10, "Times that a failed check is asked again.")
    interval: float = _s(seconds, 10.0, "Pause before a check is asked again.", "seconds")
    deadline: float = _s(
        seconds, 600.0, "Time after boot by which health must be decided.", "seconds"
    )
    inconclusive: str = _s(
        choice("pass", "fail"), "fail", "What an inconclusive check becomes at the deadline."
    )
    soak: float = _s(
        seconds,
        0.0,
        "Time between healthy and blessed, during which health is asked again.",
        "seconds",
    )
    root: str = _s(text, "/", "Directory under which the check directories lie (tests).")


@dataclass(frozen=True, slots=True)
class Reboot:
    """When and how to reboot."""

    strategy: str = _s(
        choice("off", "reboot", "etcd-lock", "fleetlock", "command"),
        "off",
        "off: somebody else reboots; reboot: at once, in a window; etcd-lock, fleetlock: after a lock is held; command: an executable decides.",
    )
    windows: tuple[str, ...] = _s(
        texts, (), 'Windows such as "Thu 23:00 1h30m Europe/Berlin"; any time where empty.'
    )
    spread: bool = _s(flag, True, "Start at a place within the window that this host's id decides.")
    window_start: str = _s(text, "", "Locksmith's REBOOT_WINDOW_START.")
    window_length: str = _s(text, "", "Locksmith's REBOOT_WINDOW_LENGTH.")
    group: str = _s(text, "", "Lock group.")
    endpoints: tuple[str, ...] = _s(
        texts, (), "Endpoints of etcd, or the base URL of the FleetLock server."
    )
    etcd_api: str = _s(
        choice("auto", "v3", "v2"),
        "auto",
        "API by which etcd is asked. auto: v2 where locksmith's document lies there already or where the server has no v3, else v3.",
    )
    stale_after: float = _s(
        seconds,
        3600.0,
        "A host that holds the lock for longer counts as gone: `explain` names it and how to free its place.",
        "seconds",
    )
    command: tuple[str, ...] = _s(texts, (), "The operator's executable with its arguments.")
    warn: float = _s(seconds, 300.0, "Notice given to logged-in users.", "seconds")
    inhibitors: bool = _s(flag, True, "Wait while a systemd inhibitor blocks shutdown.")
    sessions: bool = _s(flag, False, "Wait while users are logged in.")
    via: str = _s(
        choice("logind", "file", "none"),
        "logind",
        "logind: ask it to reboot; file: write the request into the run directory (demo and tests); none.",
    )
    late_window: float = _s(
        seconds, 0.0, "After blessing, keep the old slot untouched for this long.", "seconds"
    )
    late_units: tuple[str, ...] = _s(
        texts, (), "Units whose failure inside `late_window` returns to the old slot."
    )
    late_restarts: int = _s(
        integer(1, 1000), 3, "Automatic restarts of one of them in that time that count as failure."
    )
    ca_file: str = _s(text, "", "PEM bundle for the lock's server.")
    certificate: str = _s(text, "", "PEM client certificate for the lock's server.")
    key: str = _s(text, "", "PEM key of that certificate.")
    user: str = _s(text, "", "User at the lock's server.")
    password: str = _s(text, "", "Password at the lock's server.")


@dataclass(frozen=True, slots=True)
class Postinst:
    """The new image's own post-installation step."""

    run: str = _s(
        choice("auto", "never"), "auto", "auto: run `/postinst` of the new image if it has one."
    )
    timeout: float = _s(seconds, 1800.0, "Longest run.", "seconds")
    packages: tuple[str, ...] = _s(
        texts,
        (),
        "Extra packages that a release must come with here, such as `oem-qemu.gz`; an offer without one is refused before anything is fetched.",
    )


@dataclass(frozen=True, slots=True)
class StatePaths:
    """Where state is kept."""

    directory: str = _s(text, "/var/lib/bascule", "Ledger, checkpoints and history.")
    run_directory: str = _s(
        text,
        "/run",
        "Markers that a reboot clears: reboot-required, update_engine_autoupdate_completed.",
    )
    prefs: str = _s(
        text,
        "/var/lib/update_engine/prefs",
        "Flatcar's prefs that a postinst reads; not written where empty.",
    )
    root: str = _s(text, "/", "Root for release files, machine-id and /proc (tests).")


@dataclass(frozen=True, slots=True)
class Bus:
    """D-Bus."""

    address: str = _s(text, "", "Bus address; the system bus where empty.")
    legacy: bool = _s(
        flag, True, "Own com.coreos.update1 too, for locksmith, FLUO and Flatcar's scripts."
    )


@dataclass(frozen=True, slots=True)
class Log:
    """Logging."""

    level: str = _s(
        choice("debug", "info", "warning", "error"), "info", "Least severity that is logged."
    )
    format: str = _s(
        choice("auto", "json", "text"), "auto", "auto: text on a terminal, JSON otherwise."
    )


@dataclass(frozen=True, slots=True)
class Metrics:
    """Prometheus text."""

    mode: str = _s(
        choice("off", "socket", "textfile"),
        "off",
        "socket: served on a unix socket; textfile: written for node_exporter.",
    )
    path: str = _s(
        text,
        "",
        "Path of the socket or file; /run/bascule/metrics.sock or /var/lib/prometheus/node-exporter/bascule.prom where empty.",
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings.

    Attributes:
        origins: ``section.key`` → the file that a value came from.
        notes: one sentence for each word of a foreign file that is not obeyed.
    """

    server: Server = field(default_factory=Server)
    check: Check = field(default_factory=Check)
    download: Download = field(default_factory=Download)
    policy: Policy = field(default_factory=Policy)
    slots: Slots = field(default_factory=Slots)
    boot: Boot = field(default_factory=Boot)
    trust: Trust = field(default_factory=Trust)
    health: Health = field(default_factory=Health)
    reboot: Reboot = field(default_factory=Reboot)
    postinst: Postinst = field(default_factory=Postinst)
    state: StatePaths = field(default_factory=StatePaths)
    bus: Bus = field(default_factory=Bus)
    log: Log = field(default_factory=Log)
    metrics: Metrics = field(default_factory=Metrics)
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def items(self) -> Iterator[tuple[str, Any, str]]:
        """Every setting: (``section.key``, value, origin)."""
        for section in sections():
            values = getattr(self, section)
            for key in dataclasses.fields(values):
                held = _held(f"{section}.{key.name}", getattr(values, key.name), key.metadata)
                for name, value in held:
                    yield name, value, self.origins.get(name, "default")

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as the daemon hands it to an errand."""
        data: dict[str, Any] = {s: dataclasses.asdict(getattr(self, s)) for s in sections()}
        data["origins"] = dict(self.origins)
        data["notes"] = list(self.notes)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """The inverse of `as_dict`. Raises SettingsError."""
        layers = [
            (
                str(data.get("origins", {}).get("", "")),
                {s: data[s] for s in sections() if s in data},
            )
        ]
        return dataclasses.replace(
            merge(layers),
            origins=dict(data.get("origins", {})),
            notes=tuple(str(note) for note in data.get("notes", ())),
        )


_SECTIONS: dict[str, Any] = {
    f.name: type(getattr(Settings(), f.name))
    for f in dataclasses.fields(Settings)
    if f.name not in ("origins", "notes")
}

SECRETS = frozenset({"download.password", "reboot.password"})
"""Settings that are never shown."""


def sections() -> tuple[str, ...]:
    """Names of the sections, in order."""
    return tuple(_SECTIONS)


def describe() -> Iterator[tuple[str, str, Any, str]]:
    """For docs: (``section.key``, sentence, default, unit)."""
    for name, default, _ in Settings().items():
        section, key = name.split(".")
        meta = type(getattr(Settings(), section)).__dataclass_fields__[key].metadata
        yield name, meta["doc"], default, meta["unit"]


def _held(name: str, value: Any, metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a setting holds: itself, or where it is nested, each value in its tables by its name."""
    if not metadata["nested"] or not any(value.values()):
        yield name, value
        return
    for table, options in value.items():
        for option, inner in options.items():
            yield name + check_path(table, option), inner


def _laid_over(
    below: Mapping[str, Mapping[str, Any]], above: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Mapping[str, Any]]:
    return {t: {**below.get(t, {}), **above.get(t, {})} for t in {**below, **above}}


def merge(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Settings:
    """Merge layers, lowest first.

    Args:
        layers: (origin, {section: {key: value}}).

    Raises:
        SettingsError: an unknown section or key, or a value of the wrong kind.
    """
    values: dict[str, dict[str, Any]] = {s: {} for s in sections()}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for section, body in layer.items():
            if section not in values:
                raise SettingsError(
                    f"{origin}: unknown section [{section}]; known are {', '.join(values)}",
                    file=origin,
                    key=section,
                )
            if not isinstance(body, Mapping):
                raise SettingsError(
                    f"{origin}: [{section}] must be a table", file=origin, key=section
                )
            known = _SECTIONS[section].__dataclass_fields__
            for key, value in body.items():
                name = f"{section}.{key}"
                if key not in known:
                    raise SettingsError(
                        f"{origin}: unknown key `{name}`; known in [{section}] are {', '.join(known)}",
                        file=origin,
                        key=name,
                    )
                metadata = known[key].metadata
                try:
                    given = metadata["parse"](value)
                except ValueError as error:
                    name += getattr(error, "path", "")
                    raise SettingsError(
                        f"{origin}: `{name}` {error}", file=origin, key=name
                    ) from None
                origins.update((held, origin) for held, _ in _held(name, given, metadata))
                if metadata["nested"]:
                    given = _laid_over(values[section].get(key, {}), given)
                values[section][key] = given
    built = {s: _SECTIONS[s](**v) for s, v in values.items()}
    settings = Settings(**built, origins=origins)
    _cross_check(settings)
    return settings


def _cross_check(settings: Settings) -> None:
    unknown = set(settings.trust.require) - {"rsa", "openpgp", "signed-metadata"}
    if unknown:
        raise SettingsError(
            f"{settings.origins.get('trust.require', 'default')}: `trust.require` knows rsa, openpgp and "
            f"signed-metadata, not {', '.join(sorted(unknown))}",
            key="trust.require",
        )
    if not settings.trust.require:
        raise SettingsError(
            "`trust.require` must name one proof at least: nothing unproven is installed",
            key="trust.require",
        )


_FLATCAR_KEYS = {
    "SERVER": ("server", "url"),
    "GROUP": ("server", "group"),
    "MACHINE_ALIAS": ("server", "machine_alias"),
    "DOWNLOAD_USER": ("download", "user"),
    "DOWNLOAD_PASSWORD": ("download", "password"),
    "FLATCAR_RELEASE_VERSION": ("server", "version"),
    "FLATCAR_RELEASE_BOARD": ("server", "board"),
    "FLATCAR_RELEASE_APPID": ("server", "app_id"),
    "REBOOT_STRATEGY": ("reboot", "strategy"),
    "LOCKSMITHD_REBOOT_WINDOW_START": ("reboot", "window_start"),
    "LOCKSMITHD_REBOOT_WINDOW_LENGTH": ("reboot", "window_length"),
    "REBOOT_WINDOW_START": ("reboot", "window_start"),
    "REBOOT_WINDOW_LENGTH": ("reboot", "window_length"),
    "LOCKSMITHD_GROUP": ("reboot", "group"),
    "LOCKSMITHD_ENDPOINT": ("reboot", "endpoints"),
    "LOCKSMITHD_ETCD_CAFILE": ("reboot", "ca_file"),
    "LOCKSMITHD_ETCD_CERTFILE": ("reboot", "certificate"),
    "LOCKSMITHD_ETCD_KEYFILE": ("reboot", "key"),
    "LOCKSMITHD_ETCD_USERNAME": ("reboot", "user"),
    "LOCKSMITHD_ETCD_PASSWORD": ("reboot", "password"),
}
_FLATCAR_WINDOW = ("REBOOT_WINDOW_START", "REBOOT_WINDOW_LENGTH")
_FLATCAR_FILES = (
    "etc/flatcar/update.conf",
    "usr/share/flatcar/update.conf",
    "usr/share/flatcar/release",
)


def flatcar_layers(root: Path, notes: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """Flatcar's own files as layers, lowest first (reference 6.1: the first file with the key wins).

    `notes` gets a sentence for each value that is not obeyed.

    A line that other programs read and Bascule does not is passed over, as the original does.
    """
    from bascule.formats.keyvalue import parse_key_value

    layers: list[tuple[str, Mapping[str, Any]]] = []
    for name in reversed(_FLATCAR_FILES):
        path = root / name
        body = _read(path)
        if body is None:
            continue
        layer: dict[str, dict[str, Any]] = {}
        pairs = parse_key_value(body)
        for key, (section, setting) in _FLATCAR_KEYS.items():
            if key not in pairs or setting in layer.get(section, {}):
                continue
            if key.startswith("REBOOT_WINDOW_") and any(
                pairs.get(f"LOCKSMITHD_{other}", "").strip() for other in _FLATCAR_WINDOW
            ):
                # locksmith takes its own pair as a whole, or the other one.
                continue
            value = pairs[key].strip()
            if not value and section == "reboot":
                continue
            if key == "REBOOT_STRATEGY" and value not in ("off", "reboot", "etcd-lock"):
                # locksmith stumbles over such a word only when a reboot is due; we never reboot on it.
                notes.append(
                    f"{path}: REBOOT_STRATEGY={value[:32]} is not known here, so no reboot is made; "
                    "known are off, reboot and etcd-lock."
                )
                value = "off"
            layer.setdefault(section, {})[setting] = value
        if layer:
            layers.append((str(path), layer))
    return layers


KAIROS_FOLDERS = ("system/oem", "oem", "usr/local/cloud-config")
"""Where Kairos keeps its cloud-config files; a later folder wins, and in it a later name."""

_KAIROS_FILES = 200


def kairos_layers(root: Path, notes: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The block ``kairos.upgrade`` of Kairos's cloud-config files as a layer for each, lowest first."""
    files: list[Path] = []
    for folder in KAIROS_FOLDERS:
        try:
            names = sorted(p for p in (root / folder).iterdir() if p.suffix in (".yaml", ".yml"))
        except OSError:
            continue
        files += names
    told: list[tuple[str, bytes]] = []
    for path in files[:_KAIROS_FILES]:
        body = _read(path)
        # Other programs' templates live there too: a file is read as YAML only where it must be.
        if body is not None and b"kairos" in body and b"upgrade" in body:
            told.append((str(path), body))
    if not told:
        return []
    from bascule.updater.kairos import read_layers

    layers, said = read_layers(told)
    notes += said
    return list(layers)


def _read(path: Path) -> bytes | None:
    """The file's bytes; None where there is nothing of that name, not even a dangling link."""
    try:
        # Not to wait for the writer of a fifo that somebody put there.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(handle, "rb") as file:
            if stat.S_ISFIFO(os.fstat(handle).st_mode):
                raise SettingsError(f"{path}: a pipe, not a file", file=str(path))
            body = file.read(SIZE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise SettingsError(f"{path}: a link to nothing", file=str(path)) from error
        return None
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}", file=str(path)) from error
    if len(body) > SIZE_LIMIT:
        raise SettingsError(f"{path}: larger than 1 MiB", file=str(path))
    return body


def _present(path: Path) -> bool:
    """There is something of that name, be it a link to nothing. Raises SettingsError."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}", file=str(path)) from error
    return True


def _dropins(folder: Path) -> list[Path]:
    """The fragments in `folder`; hidden files are an editor's own. Raises SettingsError."""
    try:
        names = [p for p in folder.iterdir() if p.suffix == ".toml" and p.name[0] != "."]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingsError(f"{folder}: {error.strerror}", file=str(folder)) from error
    return sorted(names)


def fragments(root: Path, extra: Sequence[Path] = ()) -> list[Path]:
    """The TOML files that are read, lowest first."""
    files: list[Path] = []
    dropins: dict[str, Path] = {}
    for place in ("usr/lib/bascule", "run/bascule", "etc/bascule"):
        base = root / place
        if _present(base / "bascule.toml"):
            files.append(base / "bascule.toml")
        dropins.update({p.name: p for p in _dropins(base / "bascule.toml.d")})
    return files + [dropins[name] for name in sorted(dropins)] + list(extra)


def load(root: Path = Path("/"), extra: Sequence[Path] = ()) -> Settings:
    """Read every layer below `root`, then the files `extra`.

    Raises:
        SettingsError: a file cannot be read, is not TOML, or holds an unknown key or a bad value.
    """
    notes: list[str] = []
    layers = flatcar_layers(root, notes) + kairos_layers(root, notes)
    for path in fragments(root, extra):
        body = _read(path)
        if body is None:
            if path in extra:
                raise SettingsError(f"{path}: no such file", file=str(path))
            continue
        try:
            layers.append((str(path), tomllib.loads(body.decode())))
        except RecursionError:
            raise SettingsError(f"{path}: nested too deeply", file=str(path)) from None
        except ValueError as error:
            # TOML's and UTF-8's mistakes, and a number of more digits than Python reads.
            raise SettingsError(f"{path}: {error}", file=str(path)) from None
    return dataclasses.replace(merge(layers), notes=tuple(notes))


def load_what_is_right(
    root: Path = Path("/"), extra: Sequence[Path] = ()
) -> tuple[Settings, list[str]]:
    """As `load`, for who has to act whatever the files say: (settings, what is wrong and left out)."""
    wrong: list[str] = []
    layers: list[tuple[str, Mapping[str, Any]]] = []

    def attempt(read: Callable[[], Iterable[tuple[str, Mapping[str, Any]]]]) -> None:
        try:
            found = [*layers, *read()]
            merge(found)
        except SettingsError as error:
            wrong.append(str(error))
        else:
            layers[:] = found

    def parsed(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        body = _read(path)
        try:
            if body is not None:
                yield str(path), tomllib.loads(body.decode())
        except (RecursionError, ValueError) as error:
            raise SettingsError(f"{path}: {error}", file=str(path)) from None

    attempt(lambda: flatcar_layers(root, []))
    attempt(lambda: kairos_layers(root, []))
    try:
        paths = fragments(root, extra)
    except SettingsError as error:
        wrong.append(str(error))
        paths = list(extra)
    for path in paths:
        attempt(functools.partial(parsed, path))
    return merge(layers), wrong


def differences(before: Settings, after: Settings) -> list[str]:
    """One sentence for each value that changed; secrets are named, not shown."""
    old = {name: value for name, value, _ in before.items()}
    new = {name for name, _, _ in after.items()}
    # An option that nobody sets has no line, and {} is the line of no tables: no change either way.
    told = [
        f"{name} is now {'(secret)' if name in SECRETS else repr(value)} ({origin})"
        for name, value, origin in after.items()
        if old.get(name, {}) != value
    ]
    gone = [name for name, value in old.items() if name not in new and value != {}]
    return told + [f"{name} is no longer set" for name in gone]
