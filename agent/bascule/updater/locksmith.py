"""Locksmith's own settings, read as locksmithd reads them (reference 6.1, 7.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bascule.updater.windows import Window, Windows, parse_locksmith

STRATEGIES = ("off", "reboot", "etcd-lock")
_ENDPOINT = "http://127.0.0.1:2379"


@dataclass(frozen=True, slots=True)
class Locksmith:
    """What ``update.conf`` and locksmithd's environment say about reboots.

    Attributes:
        strategy: ``off``, ``reboot`` or ``etcd-lock``.
        odd_strategy: the word found, if it is none of these; `strategy` is ``off`` then.
        endpoints: etcd client URLs.
    """

    strategy: str = "reboot"
    odd_strategy: str = ""
    windows: Windows = field(default_factory=Windows)
    group: str = ""
    endpoints: tuple[str, ...] = (_ENDPOINT,)
    ca_file: str = ""
    certificate: str = ""
    key: str = ""
    user: str = ""
    password: str = field(default="", repr=False)


def interpret(values: Mapping[str, str], zone_name: str = "") -> Locksmith:
    """Read ``REBOOT_STRATEGY``, ``LOCKSMITHD_*`` and ``REBOOT_WINDOW_*``.

    The ``LOCKSMITHD_REBOOT_WINDOW_*`` pair wins over the ``REBOOT_WINDOW_*`` pair as a whole. An
    empty strategy means ``reboot``. An unknown one, over which locksmithd stumbles when a reboot
    is due, means ``off`` here: nothing reboots on a word that nobody understands.

    Raises:
        SettingsError: half a window, or a window that locksmithd refuses too.
    """
    word = values.get("REBOOT_STRATEGY", "") or "reboot"
    known = word in STRATEGIES
    window = _window(values, "LOCKSMITHD_REBOOT_WINDOW_", zone_name) or _window(
        values, "REBOOT_WINDOW_", zone_name
    )
    endpoints = tuple(
        e.strip() for e in values.get("LOCKSMITHD_ENDPOINT", "").split(",") if e.strip()
    )
    return Locksmith(
        strategy=word if known else "off",
        odd_strategy="" if known else word,
        windows=Windows((window,) if window else ()),
        group=values.get("LOCKSMITHD_GROUP", ""),
        endpoints=endpoints or (_ENDPOINT,),
        ca_file=values.get("LOCKSMITHD_ETCD_CAFILE", ""),
        certificate=values.get("LOCKSMITHD_ETCD_CERTFILE", ""),
        key=values.get("LOCKSMITHD_ETCD_KEYFILE", ""),
        user=values.get("LOCKSMITHD_ETCD_USERNAME", ""),
        password=values.get("LOCKSMITHD_ETCD_PASSWORD", ""),
    )


def _window(values: Mapping[str, str], prefix: str, zone_name: str) -> Window | None:
    return parse_locksmith(
        values.get(prefix + "START", ""), values.get(prefix + "LENGTH", ""), zone_name
    )
