"""Kairos's files as a layer of settings: where it stands, whose values win, what it cannot have."""

from __future__ import annotations

from pathlib import Path

import pytest

from bascule.errors import SettingsError
from bascule.settings import Settings, load


def write(root: Path, name: str, body: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body)
    return path


BLOCK = """#cloud-config
kairos:
  upgrade:
    auto: true
    schedule: "0 2 * * *"
    image: "dir:/mnt/releases"
    check_disk_space: true
    reboot: true
"""


def test_the_block_is_a_layer_with_its_origin(tmp_path: Path) -> None:
    path = write(tmp_path, "oem/90_custom.yaml", BLOCK)
    settings = load(tmp_path)
    assert settings.policy.mode == "apply"
    assert settings.policy.schedule == ("0 2 * * *",)
    assert settings.reboot.strategy == "reboot"
    assert settings.server.repository == "/mnt/releases"
    for name in ("policy.mode", "policy.schedule", "reboot.strategy", "server.repository"):
        assert settings.origins[name] == str(path)
    assert settings.notes == ()
    assert Settings.from_dict(settings.as_dict()) == settings


def test_later_files_win_key_by_key_and_ours_win_over_all(tmp_path: Path) -> None:
    first = write(tmp_path, "oem/90_custom.yaml", BLOCK)
    last = write(tmp_path, "usr/local/cloud-config/99.yaml", "kairos: {upgrade: {reboot: false}}")
    settings = load(tmp_path)
    assert (settings.policy.mode, settings.reboot.strategy) == ("stage", "off")
    assert settings.origins["policy.mode"] == str(last)
    assert settings.origins["policy.schedule"] == str(first)
    ours = write(tmp_path, "etc/bascule/bascule.toml", '[policy]\nmode = "check"\n')
    settings = load(tmp_path)
    assert settings.policy.mode == "check"
    assert settings.origins["policy.mode"] == str(ours)


def test_kairos_wins_over_flatcars_files(tmp_path: Path) -> None:
    write(tmp_path, "etc/flatcar/update.conf", "REBOOT_STRATEGY=etcd-lock\nGROUP=beta\n")
    write(tmp_path, "oem/90_custom.yaml", BLOCK)
    settings = load(tmp_path)
    assert (settings.reboot.strategy, settings.server.group) == ("reboot", "beta")


def test_a_file_that_is_silent_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, "oem/01_other.yaml", "#cloud-config\nhostname: kairos-{{ random }}\n")
    write(tmp_path, "oem/03_template.yaml", "install: {device: {{ .kairos }}}\n")
    write(tmp_path, "oem/02.yaml", "kairos:\n  upgrade: {schedule: '@daily'}\n")
    settings = load(tmp_path)
    assert "policy.mode" not in settings.origins
    assert settings.policy.schedule == ("@daily",)


def test_words_that_are_not_obeyed_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "oem/90.yaml",
        "kairos: {upgrade: {recovery: true, image: 'quay.io/kairos/x:1', check_disk_space: false}}",
    )
    write(tmp_path, "usr/share/flatcar/update.conf", "REBOOT_STRATEGY=best-effort\n")
    settings = load(tmp_path)
    assert len(settings.notes) == 4
    told = "\n".join(settings.notes)
    assert f"{path}: kairos.upgrade.recovery is not known" in told
    assert "container image" in told and "room is always checked" in told
    assert "REBOOT_STRATEGY=best-effort" in told
    assert settings.server.repository == ""


def test_a_wrong_value_names_file_and_key(tmp_path: Path) -> None:
    write(tmp_path, "oem/90.yaml", "kairos: {upgrade: {auto: sometimes}}")
    with pytest.raises(SettingsError, match=r"oem/90\.yaml: kairos\.upgrade\.auto"):
        load(tmp_path)
