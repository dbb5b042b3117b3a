"""From settings to the parts that gates look at."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bascule.assembly import Assembly
from bascule.circumstances import Circumstances
from bascule.engine.coordination.etcd import EtcdLock
from bascule.errors import SettingsError
from bascule.settings import load
from bascule.updater.status import Status


def test_the_settings_reach_the_lock(tmp_path: Path) -> None:
    """From a settings file to the parts: etcd's API, and when a holder counts as gone."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("a" * 32 + "\n")
    config = tmp_path / "x.toml"

    def circumstances(api: str) -> Circumstances:
        config.write_text(
            '[reboot]\nstrategy = "etcd-lock"\nendpoints = ["http://127.0.0.1:1"]\n'
            f'etcd_api = "{api}"\n[state]\nroot = "{tmp_path}"\n'
        )
        assembly = Assembly(load(tmp_path, [config]))
        return Circumstances(lambda: assembly, Status, lambda: None, time.time)

    for api, stores in (("auto", {"v2", "v3"}), ("v2", {"v2"}), ("v3", {"v3"})):
        lock = circumstances(api).coordinator()
        assert isinstance(lock, EtcdLock)
        assert set(lock._stores) == stores
    with pytest.raises(SettingsError, match="auto, v3, v2"):
        circumstances("v4")
