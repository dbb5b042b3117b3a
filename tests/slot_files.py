"""A slot made of plain files, and installations into it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bascule.engine.boot import ClearedSlot
from bascule.engine.boot.files import clear_files
from bascule.engine.checkpoint import CheckpointStore
from bascule.engine.region import Region
from bascule.engine.stream import Announced, Installed, install
from bascule.engine.verify import VerifiedSlot, read_back
from bascule.formats.signature import PublicKey

if TYPE_CHECKING:
    from payload_vectors import Bytes

SLACK = 64 << 10
"""Bytes by which a target is larger than its image."""


class SlotFiles:
    """Targets and sources in a folder.

    Args:
        old: part name → image of the booted slot.
        new: part name → image that must be there in the end.
        files: parts that are files of their own, not devices.
    """

    def __init__(
        self,
        folder: Path,
        *,
        old: Mapping[str, bytes],
        new: Mapping[str, bytes],
        files: frozenset[str] = frozenset(),
        fill: bytes | None = b"\xee",
    ) -> None:
        self.folder = folder
        self.new = dict(new)
        self.old = dict(old)
        self.targets: dict[str, Region] = {}
        self.sources: dict[str, Region] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in new.items():
            path = folder / f"{name}.new"
            if name not in files and fill is not None:
                path.write_bytes(fill * (-(-len(data) // 4096) * 4096 + SLACK))
            self.targets[name] = Region(path, file=name in files)
        for name, data in old.items():
            path = folder / f"{name}.old"
            if fill is not None:
                path.write_bytes(data)
            self.sources[name] = Region(path, file=name in files)
        self.store = CheckpointStore(folder / "state")
        self.cleared: ClearedSlot = clear_files(self.targets, booted=self.sources.values())

    @classmethod
    def reopen(
        cls,
        folder: Path,
        *,
        old: Mapping[str, bytes],
        new: Mapping[str, bytes],
        files: frozenset[str] = frozenset(),
    ) -> SlotFiles:
        """The same slot in another process: nothing is written."""
        return cls(folder, old=old, new=new, files=files, fill=None)

    async def install(
        self,
        payload: bytes | Bytes,
        keys: Sequence[PublicKey],
        *,
        announced: Announced | None = None,
        resumable: bool = True,
        **options: Any,
    ) -> Installed:
        """One attempt."""
        if isinstance(payload, bytes):
            from payload_vectors import Bytes

            payload = Bytes(payload)
        return await install(
            payload,
            announced=announced or Announced(None, None),
            keys=lambda: keys,
            cleared=self.cleared,
            targets=self.targets,
            sources=self.sources,
            checkpoint=self.store if resumable else None,
            **options,
        )

    async def verify(self, installed: Installed) -> VerifiedSlot:
        """Read everything back."""
        return await read_back(
            installed.signed,
            self.targets,
            cleared=self.cleared,
            carried=installed.carried,
            begun=installed.begun,
        )

    def run(self, payload: bytes | Bytes, keys: Sequence[PublicKey], **options: Any) -> Installed:
        """One attempt with read-back, in a loop of its own."""

        async def both() -> Installed:
            installed = await self.install(payload, keys, **options)
            await self.verify(installed)
            return installed

        return asyncio.run(both())

    def matches(self) -> bool:
        """Whether every part is bit for bit the new image."""
        return all(
            self.targets[name].path.read_bytes()[: len(data)] == data
            and (not self.targets[name].file or self.targets[name].path.stat().st_size == len(data))
            for name, data in self.new.items()
        )

    def untouched(self) -> bool:
        """Whether the booted slot is as it was."""
        return all(self.sources[n].path.read_bytes() == data for n, data in self.old.items())
