"""Public keys on disk, read when something is to be verified and never kept.

Flatcar's tests and ``flatcar-update`` put another key in place while the daemon runs (reference
flatcar.md 1.7), and rotation means that several are valid at a time.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bascule.errors import NoKeys
from bascule.formats.signature import PublicKey, load_keys

SUFFIXES = (".pem", ".pub")
"""Files of a keys directory that are read; a file named by itself may be called anything."""

_LIMIT = 256 << 10
_MOST = 256


@dataclass(frozen=True, slots=True)
class Keyring:
    """What a keys directory or file holds.

    Attributes:
        keys: usable keys, in order of their files' names, each once.
        faults: one sentence for each file that could not be used.
    """

    keys: tuple[PublicKey, ...]
    faults: tuple[str, ...]


def read_keyring(path: Path) -> Keyring:
    """Read every key at `path`. A bad file is named and does not hide the good ones."""
    keys: dict[str, PublicKey] = {}
    faults: list[str] = []
    try:
        files = list(_files(path))
    except OSError as error:
        return Keyring((), (f"{path}: {error.strerror}",))
    for file in files[:_MOST]:
        try:
            for key in load_keys(_read(file), file.name):
                keys.setdefault(key.fingerprint, key)
        except NoKeys as error:
            faults.append(error.detail)
        except OSError as error:
            faults.append(f"{file.name}: {error.strerror}")
    if len(files) > _MOST:
        faults.append(f"{path} has {len(files)} files; only {_MOST} were read")
    return Keyring(tuple(keys.values()), tuple(faults))


def read_keys(path: Path) -> tuple[PublicKey, ...]:
    """The usable keys at `path`.

    Raises:
        NoKeys: there is none, so nothing can be proven and nothing is accepted.
    """
    found = read_keyring(path)
    if not found.keys:
        why = "; ".join(found.faults) or f"{path} has no file named *.pem or *.pub"
        raise NoKeys(why, path=str(path))
    return found.keys


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.iterdir()):
        if file.suffix in SUFFIXES and not file.name.startswith("."):
            yield file


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        info = file.stat()
        if not stat.S_ISREG(info.st_mode):
            raise NoKeys(f"{file.name}: not a regular file")
        if info.st_mode & stat.S_IWOTH:
            raise NoKeys(f"{file.name}: everybody may write it")
        data = stream.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise NoKeys(f"{file.name}: over {_LIMIT} bytes")
    return data
