"""Coordinators by the word that ``reboot.strategy`` names them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bascule.engine.coordination.interface import RebootCoordinator
from bascule.errors import SettingsError

if TYPE_CHECKING:
    import ssl

STRATEGIES = ("off", "reboot", "etcd-lock", "fleetlock", "command")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a lock's server wants to see; file names of PEM files.

    Attributes:
        certificate, key: client certificate; the key may be in the certificate's file.
    """

    ca_file: str = ""
    certificate: str = ""
    key: str = ""
    user: str = ""
    password: str = field(default="", repr=False)

    def tls(self) -> ssl.SSLContext:
        """A context that checks the server. Raises SettingsError for files that cannot be used."""
        import ssl  # 4 MB that the idle daemon does without

        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key or None)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"the reboot lock's TLS files cannot be used: {error}") from error
        return context


def coordinator(
    strategy: str,
    *,
    machine_id: str,
    group: str = "",
    endpoints: Sequence[str] = (),
    command: Sequence[str] = (),
    etcd_api: str = "auto",
    credentials: Credentials | None = None,
    clock: Callable[[], float],
    timeout: float = 10.0,
) -> RebootCoordinator:
    """The coordinator of that name.

    Args:
        machine_id: 32 hexadecimal digits: how this host is known to the others.
        endpoints: etcd client URLs, or the base URL of a FleetLock server.
        command: the operator's executable with its arguments.
        etcd_api: ``auto``, ``v3`` or ``v2``.
        clock: unix seconds.
        timeout: seconds that a server may take for one answer.

    Raises:
        SettingsError: an unknown strategy, or one that lacks what it needs.
    """
    who = credentials or Credentials()
    # Only the one that is wanted is imported: HTTP is heavy, and most hosts need none of these.
    match strategy:
        case "off" | "reboot":
            from bascule.engine.coordination.local import Off, Reboot

            return Off() if strategy == "off" else Reboot()
        case "etcd-lock":
            from bascule.engine.coordination.etcd import EtcdLock

            return EtcdLock(
                endpoints,
                machine_id,
                group=group,
                credentials=who,
                clock=clock,
                timeout=timeout,
                api=etcd_api,
            )
        case "fleetlock":
            from bascule.engine.coordination.fleetlock import FleetLock

            if len(endpoints) != 1:
                raise SettingsError(
                    "`reboot.endpoints` names one FleetLock server, no more or less"
                )
            return FleetLock(
                endpoints[0], machine_id, group=group or "default", credentials=who, timeout=timeout
            )
        case "command":
            from bascule.engine.coordination.command import Command

            if not command:
                raise SettingsError("`reboot.command` is empty")
            return Command(tuple(command), machine_id, group=group)
        case _:
            raise SettingsError(
                f"`reboot.strategy` {strategy[:32]!r} is not one of {', '.join(STRATEGIES)}"
            )
