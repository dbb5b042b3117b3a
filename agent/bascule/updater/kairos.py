"""Kairos's ``kairos.upgrade`` block, read from cloud-config files as it stands (peers B.5).

YAML needs a reader: PyYAML's ``safe_load``, imported only where such a file exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

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


class Block(NamedTuple):
    """The block of one file.

    Attributes:
        name: of the file.
        body: the block as it stands.
        values: what it says of the keys that are known, checked.
        merged: with all files before it; later ones win key by key.
    """

    name: str
    body: Mapping[object, object]
    values: Mapping[str, bool | str]
    merged: KairosUpgrade


def read_blocks(files: Iterable[tuple[str, bytes]]) -> Iterator[Block]:
    """The blocks of several cloud-config files, (name, contents). Files without one count for nothing.

    Raises:
        SettingsError: a file is too large or no YAML, or the block has a wrong value; the file and
            the key are named.
    """
    merged = KairosUpgrade()
    for name, raw in files:
        body = _block(name, raw)
        if body is None:
            continue
        values = {key: value for key, value in _checked(name, body).items() if value is not None}
        merged = replace(merged, **values)  # type: ignore[arg-type]
        yield Block(name, body, values, merged)


def read_layers(
    files: Iterable[tuple[str, bytes]],
) -> tuple[list[tuple[str, Mapping[str, Mapping[str, object]]]], list[str]]:
    """The block as layers of settings, each with the file that a value came from, lowest first.

    Args:
        files: (name, contents); later ones win key by key.

    Returns:
        (origin, {section: {key: value}}), and one sentence for each word that is not obeyed.

    Raises:
        SettingsError: as `read_blocks`.
    """
    layers: list[tuple[str, Mapping[str, Mapping[str, object]]]] = []
    notes: list[str] = []
    for block in read_blocks(files):
        notes += _unknown(block.name, block.body)
        notes += _unmet(block.name, block.values)
        layers.append((block.name, _layer_of(block.merged, block.values)))
    return layers, notes


def _layer_of(merged: KairosUpgrade, values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """What one file changes, given what the files before it said."""
    found: dict[str, dict[str, object]] = {}
    whole = merged.layer()
    if "schedule" in values:
        found["policy"] = {"schedule": whole["policy"]["schedule"]}
    if "auto" in values or "reboot" in values:
        found.setdefault("policy", {})["mode"] = merged.mode
        # A reboot that an earlier file wished for is taken back by a later one.
        found["reboot"] = {"strategy": "reboot" if merged.mode == "apply" else "off"}
    kind, rest = merged.source
    if "image" in values and kind in ("dir", "http", "https"):
        found["server"] = {"repository": rest}
    return found


def _unknown(name: str, block: Mapping[object, object]) -> list[str]:
    known = KairosUpgrade.__slots__
    strange = sorted(str(key)[:64] for key in block if key not in known)
    return [
        f"{name}: kairos.upgrade.{key} is not known here and not obeyed; known are "
        f"{', '.join(known)}."
        for key in strange
    ]


def _unmet(name: str, values: Mapping[str, object]) -> list[str]:
    """What is understood and cannot be done."""
    notes = []
    kind, rest = KairosUpgrade(image=str(values.get("image") or "")).source
    if kind in ("oci", "docker"):
        notes.append(
            f"{name}: kairos.upgrade.image: {rest[:200]} is a container image, which is not fetched "
            "here; releases come from `server.url` or `server.repository`."
        )
    elif kind == "file":
        notes.append(
            f"{name}: kairos.upgrade.image: a single file is installed by hand, with "
            f"`updatectl update --file {rest[:200]}`."
        )
    if values.get("check_disk_space") is False:
        notes.append(
            f"{name}: kairos.upgrade.check_disk_space is false, but room is always checked before "
            "the first byte."
        )
    return notes


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
