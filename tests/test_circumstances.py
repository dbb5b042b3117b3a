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


def flatcar(folder: Path, text: str) -> Circumstances:
    (folder / "etc/flatcar").mkdir(parents=True)
    (folder / "etc/machine-id").write_text("a" * 32 + "\n")
    (folder / "etc/flatcar/update.conf").write_text(text)
    config = folder / "x.toml"
    config.write_text(f'[state]\nroot = "{folder}"\n')
    assembly = Assembly(load(folder, [config]))
    return Circumstances(lambda: assembly, Status, lambda: None, time.time)


def test_flatcars_update_conf_is_read_as_it_stands(tmp_path: Path) -> None:
    found = flatcar(
        tmp_path,
        "REBOOT_STRATEGY=etcd-lock\nLOCKSMITHD_REBOOT_WINDOW_START=Thu 04:00\n"
        "LOCKSMITHD_REBOOT_WINDOW_LENGTH=1h30m\nREBOOT_WINDOW_START=05:00\n"
        "REBOOT_WINDOW_LENGTH=1h\nLOCKSMITHD_ENDPOINT=http://127.0.0.1:1,http://127.0.0.1:2\n"
        "LOCKSMITHD_GROUP=db\nLOCKSMITHD_ETCD_CAFILE=/ca\nLOCKSMITHD_ETCD_CERTFILE=/crt\n"
        "LOCKSMITHD_ETCD_KEYFILE=/key\nLOCKSMITHD_ETCD_USERNAME=u\nLOCKSMITHD_ETCD_PASSWORD=p\n",
    )
    reboot = found._assembly().settings.reboot
    assert (reboot.ca_file, reboot.certificate, reboot.key) == ("/ca", "/crt", "/key")
    assert (reboot.user, reboot.password) == ("u", "p")
    (window,) = found.schedule().reboots.windows
    assert str(window).startswith("Thu 04:00 for 1 h 30 min")
    lock = found.coordinator()
    assert isinstance(lock, EtcdLock)
    assert lock._server._endpoints == ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    assert lock._key.endswith("groups/db/semaphore")


def test_locksmiths_pair_of_a_window_is_taken_as_a_whole(tmp_path: Path) -> None:
    half = flatcar(tmp_path, "LOCKSMITHD_REBOOT_WINDOW_START=04:00\nREBOOT_WINDOW_LENGTH=1h\n")
    with pytest.raises(SettingsError):
        half.schedule()


def test_locksmith_finds_etcd_where_it_always_is(tmp_path: Path) -> None:
    lock = flatcar(tmp_path, "REBOOT_STRATEGY=etcd-lock\n").coordinator()
    assert isinstance(lock, EtcdLock) and lock._server._endpoints == ["http://127.0.0.1:2379"]


@pytest.mark.parametrize(("word", "name"), [("reboot", "reboot"), ("off", "off"), ("best", "off")])
def test_reboot_strategies(tmp_path: Path, word: str, name: str) -> None:
    assert flatcar(tmp_path, f"REBOOT_STRATEGY={word}\n").coordinator().name == name
