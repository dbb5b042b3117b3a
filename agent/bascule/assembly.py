"""Builds the parts from the settings: the same for daemon, errand and the commands of a boot."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bascule.engine.boot import BootBackend, open_backend
from bascule.engine.history import History
from bascule.engine.ledger import Ledger, Record
from bascule.engine.reboot import FileRebooter, LogindRebooter, NoRebooter, Rebooter
from bascule.formats.slots import Slot
from bascule.settings import Settings

if TYPE_CHECKING:
    from bascule.engine.checkpoint import CheckpointStore
    from bascule.engine.host import Host
    from bascule.engine.keepsake import Keepsake
    from bascule.engine.layout import Layout
    from bascule.formats.omaha import Client
    from bascule.updater.attempt import Terms

DISABLED = "disabled"
LOG_STYLES = {"auto": "auto", "json": "json", "text": "console"}


class Assembly:
    """The parts that one process needs, built from one Settings value."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = Path(settings.state.root)

    # ── facts ────────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def host(self) -> Host:
        """Release, board, machine id and boot id. Blocks on small files."""
        from bascule.engine.host import read_host

        return read_host(
            self.root, version=self.settings.server.version, board=self.settings.server.board
        )

    @property
    def dev_mode(self) -> bool:
        """Flatcar's /root/.dev_mode."""
        return (self.root / "root/.dev_mode").exists()

    # ── slots ────────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def layout(self) -> Layout:
        """Where the slots are. Raises SlotsNotFound, TableError, SettingsError."""
        from bascule.engine.layout import find

        slots = self.settings.slots
        return find(
            disk=Path(slots.disk) if slots.disk else None,
            type_guid=slots.type_guid,
            parts={Slot.A: dict(slots.a), Slot.B: dict(slots.b)},
            booted=Slot(slots.booted) if slots.booted else None,
            booted_file=Path(slots.booted_file) if slots.booted_file else None,
            sector_size=slots.sector_size or None,
            kernel_files=slots.kernel == "auto",
        )

    def boot(self) -> BootBackend:
        """The boot backend, opened anew: what is mounted where may have changed."""
        boot = self.settings.boot
        given = {
            "esp": boot.esp,
            "entry_a": boot.entry_a,
            "entry_b": boot.entry_b,
            "efivars": boot.efivars,
        }
        options = {name: value for name, value in given.items() if value}
        return open_backend(boot.backend, self.layout, options)

    # ── state ────────────────────────────────────────────────────────────────────────────────

    @property
    def state_directory(self) -> Path:
        """Ledger, checkpoints, history."""
        return Path(self.settings.state.directory)

    def ledger(self) -> Ledger:
        """The ledger."""
        return Ledger(self.state_directory)

    def history(self) -> History:
        """The history."""
        return History(self.state_directory, clock=time.time)

    def checkpoint(self) -> CheckpointStore:
        """What an installation that was cut off is gone on with."""
        from bascule.engine.checkpoint import CheckpointStore

        return CheckpointStore(self.state_directory / "checkpoint")

    def keepsake(self) -> Keepsake:
        """What a prepared release is proven again with."""
        from bascule.engine.keepsake import Keepsake

        return Keepsake(self.state_directory / "prepared")

    @property
    def run_directory(self) -> Path:
        """Markers that a reboot clears."""
        return Path(self.settings.state.run_directory)

    def rebooter(self) -> Rebooter:
        """How this host is rebooted."""
        match self.settings.reboot.via:
            case "file":
                return FileRebooter(self.run_directory / "bascule-reboot-requested")
            case "none":
                return NoRebooter()
            case _:
                return LogindRebooter(self.settings.bus.address)

    # ── for an errand ────────────────────────────────────────────────────────────────────────

    def client(self, record: Record) -> Client:
        """What an Omaha request says about this host."""
        from bascule.formats.omaha import Client

        server, host = self.settings.server, self.host
        return Client(
            version=host.version,
            track=server.group,
            machineid=host.machine_id,
            bootid=host.boot_id,
            board=host.board,
            machine=host.machine,
            appid=server.app_id,
            oem=host.oem,
            oemversion=host.oem_version,
            alephversion=record.aleph_version or host.version,
            machinealias=server.machine_alias,
            delta_okay=self.settings.download.deltas,
        )

    def terms(
        self, *, interactive: bool, install: bool, options: Mapping[str, Any], on_trial: bool
    ) -> Terms:
        """What policy says about one errand."""
        from bascule.updater.attempt import Terms

        return Terms(
            running=self.host.version,
            boot_id=self.host.boot_id,
            tries=self.settings.boot.tries,
            interactive=interactive,
            install=install,
            server=self.settings.server.url,
            dev_mode=self.dev_mode,
            allow_downgrade=bool(options.get("allow_downgrade"))
            or self.settings.policy.allow_downgrade,
            wanted=str(options.get("version") or ""),
            now=bool(options.get("now")),
            on_trial=on_trial,
        )

    @property
    def workers(self) -> int:
        """Decoding threads."""
        return self.settings.policy.workers or min(4, os.cpu_count() or 1)
