"""``make playground``, with a script in place of the person."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
set -eu
updatectl update --quiet
updatectl --bus "$BASCULE_BUS_ADDRESS" reboot
until updatectl status --json 2>/dev/null | grep -q '"verdict": "UPDATED"'; do sleep 0.2; done
publish 3.0.0 broken
updatectl update --quiet
updatectl reboot
until updatectl status --json 2>/dev/null | grep -q '"verdict": "ROLLED_BACK"'; do sleep 0.2; done
updatectl quarantine list
bascule disk next "$DISK"
"""


def test_a_person_plays(tmp_path: Path) -> None:
    script = tmp_path / "play"
    script.write_text(SCRIPT)
    page = Path(__file__).with_name("playground.py")
    ran = subprocess.run(
        [sys.executable, str(page), str(script)], capture_output=True, text=True, timeout=250
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3.0.0 is on offer." in ran.stdout
    assert "10-application failed" in ran.stdout
    assert "slot B (partition 4) boots next" in ran.stdout
