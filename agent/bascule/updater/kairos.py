"""Kairos's ``kairos.upgrade`` block, read from cloud-config files as it stands (peers B.5).

YAML needs a reader: PyYAML's ``safe_load``, imported only where such a file exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bascule.errors import SettingsError
from bascule.updater.cron import parse_cron

MAX_SIZE = 256 << 10
_SOURCES = ("oci", "docker", "file", "dir", "http", "https")


@dataclass(frozen=True, slots=True)
class KairosUpgrade:
    """The block's values; None where it does not say.

    Attributes:
        auto: install by itself; otherwise check and report only.
        schedule: five-field cron expression.
        image: where the release comes from, with its prefix.
        check_disk_space: refuse before the first byte where there is no room.
        reboot: reboot by itself after the installation.
    """

    auto: bool | None = None
    schedule: str | None = None
    image: str | None = None
    check_disk_space: bool | None = None
    reboot: bool | None = None

    @property
    def mode(self) -> str:
        """``policy.mode`` that it means."""
        if not self.auto:
            return "check"
        return "apply" if self.reboot else "stage"

    @property
    def source(self) -> tuple[str, str]:
        """`image` as (kind, rest); a reference without prefix is ``oci``, as in Kairos."""
        kind, colon, rest = (self.image or "").partition(":")
        if colon and kind in _SOURCES:
            return kind, self.image or "" if kind.startswith("http") else rest
        return ("oci", self.image) if self.image else ("", "")

    def layer(self) -> dict[str, dict[str, object]]:
        """The block as one layer of settings: section → key → value."""
        policy: dict[str, object] = {"mode": self.mode}
        if self.schedule is not None:
            policy["schedule"] = [self.schedule]
        found: dict[str, dict[str, object]] = {"policy": policy}
        if self.mode == "apply":
            found["reboot"] = {"strategy": "reboot"}
        return found


def read_upgrade(files: Iterable[tuple[str, bytes]]) -> KairosUpgrade | None:
    """The block of several cloud-config files, (name, contents), later ones winning key by key.

    Files without the block count for nothing. None where no file has it.

    Raises:
        SettingsError: a file is too large or no YAML, or the block has a wrong value; the file and
            the key are named.
    """
    merged: KairosUpgrade | None = None
    for name, raw in files:
        block = _block(name, raw)
        if block is None:
            continue
        values = {key: value for key, value in _checked(name, block).items() if value is not None}
        merged = replace(merged or KairosUpgrade(), **values)  # type: ignore[arg-type]
    return merged


def _block(name: str, raw: bytes) -> Mapping[object, object] | None:
    if len(raw) > MAX_SIZE:
        raise SettingsError(f"{name}: larger than {MAX_SIZE >> 10} KiB", file=name)
    # Most cloud-config files have nothing for us: those are not worth importing a YAML reader.
    if b"kairos" not in raw:
        return None
    import yaml

    try:
        document = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        raise SettingsError(f"{name}{line}: this is not YAML", file=name) from None
    kairos = document.get("kairos") if isinstance(document, dict) else None
    upgrade = kairos.get("upgrade") if isinstance(kairos, dict) else None
    if upgrade is None:
        return None
    if not isinstance(upgrade, dict):
        raise SettingsError(f"{name}: kairos.upgrade is not a table", file=name)
    return upgrade


def _checked(name: str, block: Mapping[object, object]) -> dict[str, bool | str | None]:
    found: dict[str, bool | str | None] = {}
    for key in ("auto", "check_disk_space", "reboot"):
        value = block.get(key)
        if value is not None and not isinstance(value, bool):
            raise SettingsError(f"{name}: kairos.upgrade.{key} is not true or false", key=key)
        found[key] = value
    for key in ("schedule", "image"):
        text = block.get(key)
        if text is not None and (not isinstance(text, str) or len(text) > 1024):
            raise SettingsError(f"{name}: kairos.upgrade.{key} is not a text", key=key)
        found[key] = text or None
    schedule = found["schedule"]
    if isinstance(schedule, str):
        try:
            parse_cron(schedule)
        except SettingsError as error:
            raise SettingsError(
                f"{name}: kairos.upgrade.schedule: {error.detail}", key="schedule"
            ) from None
    return found
