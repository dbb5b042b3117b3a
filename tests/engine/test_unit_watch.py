"""Units asked over a real bus; systemd's part is `fake_systemd`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bascule.engine.unit_watch import UnitState, read_units
from bus_fixture import private_bus


async def test_units_over_the_bus(tmp_path: Path) -> None:
    from dbus_fast.aio import MessageBus

    file = tmp_path / "units.json"
    file.write_text(json.dumps({"web.service": ["active", 3], "a-b@1.service": ["failed", 0]}))
    with private_bus() as private:
        bus = await MessageBus(bus_address=private.address).connect()
        assert await read_units(bus, ["web.service"], timeout=5) == {}
        script = Path(__file__).resolve().parents[1] / "fake_systemd.py"
        fake = subprocess.Popen(
            [sys.executable, str(script), private.address, str(file)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert fake.stdout is not None
            assert fake.stdout.readline() == "ready\n"
            found = await read_units(bus, ["web.service", "a-b@1.service", "gone.service"])
        finally:
            fake.terminate()
            fake.wait(20)
            fake.stdout.close()
            bus.disconnect()
    assert found == {
        "web.service": UnitState("active", 3),
        "a-b@1.service": UnitState("failed", 0),
    }
