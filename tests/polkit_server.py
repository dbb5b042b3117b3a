"""The real polkitd on a private bus, with the actions that are shipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bascule.faces import bus, legacy_bus
from private_bus import PrivateBus

SHIPPED = Path(__file__).resolve().parents[1] / "systemd"
POLICIES = [
    SHIPPED / "dbus-1" / "system.d" / f"{name}.conf" for name in (bus.NAME, legacy_bus.NAME)
]
POLKITD = Path("/usr/lib/polkit-1/polkitd")
POLKIT_BUS_POLICY = Path("/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf")
NOBODY = 65534


@contextmanager
def real_polkit(running: PrivateBus, rules: str) -> Iterator[None]:
    """polkitd with our actions and `rules`, in a mount namespace of its own."""
    actions, rules_d = running.directory / "actions", running.directory / "rules.d"
    actions.mkdir()
    rules_d.mkdir()
    shutil.copy(SHIPPED / "polkit-1" / "actions" / "org.bascule.Update1.policy", actions)
    (rules_d / "10-test.rules").write_text(rules)
    script = (
        f"mount --bind {actions} /usr/share/polkit-1/actions && "
        f"mount --bind {rules_d} /etc/polkit-1/rules.d && exec {POLKITD} --no-debug"
    )
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": running.address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


async def name_appears(address: str, name: str) -> bool:
    from bus_listener import Listener

    listener = await Listener.open(
        address, f"type='signal',member='NameOwnerChanged',arg0='{name}'"
    )
    try:
        (there,) = await listener.driver("NameHasOwner", "s", [name])
        if not there:
            await listener.until(lambda: bool(listener.named("NameOwnerChanged")), timeout=15)
        return True
    except TimeoutError:
        return False
    finally:
        listener.close()
