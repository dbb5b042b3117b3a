"""Are the units that carry health, blessing and the way back installed and enabled? By files.

Source: systemd.unit(5), "Unit File Load Path" and "[Install] Section Options".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bascule.engine.findings import ERROR, NOTE, WARNING, Finding

UNITS: Mapping[str, str] = {
    "bascule.service": "nothing checks for updates after the next boot",
    "bascule-health.service": "no release is ever found healthy",
    "bascule-bless.service": "no release is ever confirmed, and each update is rolled back",
    "bascule-deadman.timer": "a release that hangs on its way up is not left",
}
"""Unit → what its absence means."""

PLACES = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system",
          "usr/lib/systemd/system", "lib/systemd/system")  # fmt: skip
_LIMIT = 64 << 10


def units(root: Path, names: Iterable[str] = UNITS) -> Iterator[Finding]:
    """Findings about `names` below `root`; one note where there is no systemd."""
    if not (root / "run/systemd/system").is_dir():
        yield Finding(
            "systemd-absent",
            NOTE,
            "systemd does not run here, so no unit was looked at.",
            "See to it that something runs `bascule health` and `bascule bless` after each boot.",
        )
        return
    for name in names:
        yield from _unit(root, name)


def _unit(root: Path, name: str) -> Iterator[Finding]:
    loss = UNITS.get(name, "it does not run")
    file = next((root / p / name for p in PLACES if _there(root / p / name)), None)
    if file is None:
        yield Finding(
            "unit-missing",
            ERROR,
            f"{name} is not installed: {loss}.",
            "Install Bascule's units (`make install`, or its package).",
        )
        return
    if _masked(file):
        yield Finding(
            "unit-masked", ERROR, f"{name} is masked: {loss}.", f"`systemctl unmask {name}`"
        )
        return
    wanted = list(_wanted_by(file))
    if wanted and not any(
        _there(root / place / f"{target}.{kind}" / name)
        for place in PLACES
        for kind, target in wanted
    ):
        yield Finding(
            "unit-not-enabled",
            ERROR if name == "bascule-bless.service" else WARNING,
            f"{name} is not enabled: {loss}.",
            f"`systemctl enable {name}`",
        )


def _there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _masked(path: Path) -> bool:
    if path.is_symlink():
        return str(path.readlink()) == "/dev/null"
    return path.stat().st_size == 0


def _wanted_by(file: Path) -> Iterator[tuple[str, str]]:
    """(``wants`` or ``requires``, target) of the [Install] section."""
    section = ""
    with file.open("rb") as stream:
        text = stream.read(_LIMIT).decode("utf-8", "replace")
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line
        elif section == "[Install]" and "=" in line:
            key, _, value = line.partition("=")
            kind = {"WantedBy": "wants", "RequiredBy": "requires"}.get(key.strip())
            if kind:
                yield from ((kind, target) for target in value.split())
