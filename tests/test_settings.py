from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bascule.errors import SettingsError
from bascule.settings import (
    CHECK_OPTIONS,
    SECRETS,
    Settings,
    describe,
    differences,
    load,
    merge,
    seconds,
    size,
)


def write(root: Path, name: str, body: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body)
    return path


def test_nothing_configured_is_flatcars_public_server(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.server.url == "https://public.update.flatcar-linux.net/v1/update/"
    assert settings.trust.require == ("rsa",)
    assert dict(settings.origins) == {}


def test_later_layers_win_and_say_where_a_value_came_from(tmp_path: Path) -> None:
    write(tmp_path, "usr/lib/bascule/bascule.toml", '[server]\ngroup = "beta"\nurl = "http://a/"\n')
    write(tmp_path, "run/bascule/bascule.toml.d/10-x.toml", '[server]\ngroup = "run"\n')
    write(tmp_path, "etc/bascule/bascule.toml", '[server]\ngroup = "etc"\n')
    settings = load(tmp_path)
    # Drop-ins are read after every bascule.toml, whatever directory they are in.
    assert settings.server.group == "run"
    assert settings.origins["server.group"].endswith("run/bascule/bascule.toml.d/10-x.toml")
    assert settings.origins["server.url"].endswith("usr/lib/bascule/bascule.toml")


def test_a_drop_in_hides_its_namesake_lower_down(tmp_path: Path) -> None:
    write(
        tmp_path,
        "usr/lib/bascule/bascule.toml.d/50-a.toml",
        '[server]\ngroup = "low"\nurl = "http://low/"\n',
    )
    write(tmp_path, "etc/bascule/bascule.toml.d/50-a.toml", '[server]\ngroup = "high"\n')
    settings = load(tmp_path)
    assert settings.server.group == "high"
    assert "server.url" not in settings.origins


def test_flatcars_update_conf_is_the_lowest_layer(tmp_path: Path) -> None:
    write(
        tmp_path,
        "usr/share/flatcar/release",
        "FLATCAR_RELEASE_VERSION=3510.2.0\nFLATCAR_RELEASE_BOARD=arm64-usr\n",
    )
    write(tmp_path, "usr/share/flatcar/update.conf", "GROUP=alpha\nSERVER=http://usr/\n")
    write(
        tmp_path,
        "etc/flatcar/update.conf",
        "GROUP=beta\nREBOOT_STRATEGY=etcd-lock\nOTHER=thing\nLOCKSMITHD_REBOOT_WINDOW_START=Thu 23:00\nLOCKSMITHD_REBOOT_WINDOW_LENGTH=1h30m\n",
    )
    settings = load(tmp_path)
    assert settings.server.group == "beta"
    assert settings.server.url == "http://usr/"
    assert settings.server.version == "3510.2.0"
    assert settings.server.board == "arm64-usr"
    assert settings.reboot.strategy == "etcd-lock"
    assert settings.reboot.window_start == "Thu 23:00"
    assert settings.origins["server.group"].endswith("etc/flatcar/update.conf")
    write(tmp_path, "etc/bascule/bascule.toml", '[server]\ngroup = "mine"\n')
    assert load(tmp_path).server.group == "mine"


def test_locksmith_words_that_we_do_not_know_never_reboot(tmp_path: Path) -> None:
    write(tmp_path, "etc/flatcar/update.conf", "REBOOT_STRATEGY=best-effort\n")
    assert load(tmp_path).reboot.strategy == "off"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("[sever]\nurl = 'x'\n", "sever"),
        ("[server]\nurll = 'x'\n", "server.urll"),
        ("[server]\nurl = 3\n", "server.url"),
        ("[boot]\ntries = 0\n", "boot.tries"),
        ("[boot]\ntries = true\n", "boot.tries"),
        ("[boot]\nbackend = 'lilo'\n", "boot.backend"),
        ("[check]\ninterval = 'soon'\n", "check.interval"),
        ("[check]\ninterval = -1\n", "check.interval"),
        ("[download]\nrate_limit = '1 furlong'\n", "download.rate_limit"),
        ("[trust]\nrequire = ['faith']\n", "trust.require"),
        ("[trust]\nrequire = []\n", "trust.require"),
        ("server = 3\n", "server"),
        ('[server]\ngroup = "a\\u0000b"\n', "server.group"),
        ("[server\n", "bascule.toml"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, body: str, named: str) -> None:
    path = write(tmp_path, "etc/bascule/bascule.toml", body)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path)
    assert named in str(caught.value)
    if named != "trust.require":
        assert str(path) in str(caught.value)


def test_a_huge_or_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "etc/bascule/bascule.toml"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(SettingsError, match="larger than"):
        load(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"bascule\.toml"):
        load(tmp_path)


def test_an_extra_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load(tmp_path, [tmp_path / "nowhere.toml"])


def test_settings_cross_a_pipe_whole(tmp_path: Path) -> None:
    write(
        tmp_path,
        "etc/bascule/bascule.toml",
        '[slots]\na = { usr = "/dev/x3" }\n[check]\ninterval = "1h"\n',
    )
    settings = load(tmp_path)
    again = Settings.from_dict(settings.as_dict())
    assert again == settings
    assert dict(again.origins) == dict(settings.origins)


@given(st.text(max_size=12))
def test_duration_and_size_never_raise_anything_but_value_error(word: str) -> None:
    for parse in (seconds, size):
        with contextlib.suppress(ValueError):
            assert parse(word) >= 0


def test_durations_and_sizes() -> None:
    assert [seconds(v) for v in ("90", "90s", "1h30m", "1h 30m", 5, "1.5h", "2d")] == [
        90,
        90,
        5400,
        5400,
        5,
        5400,
        172800,
    ]
    assert [size(v) for v in (1, "1", "64MiB", "2G", "3kB", "1TiB")] == [
        1,
        1,
        64 << 20,
        2 << 30,
        3 << 10,
        1 << 40,
    ]


def test_every_setting_is_documented() -> None:
    for name, doc, _, _ in describe():
        assert doc[0].isupper() or doc.split(":")[0].islower(), name
        assert doc.endswith("."), name


def test_so_is_every_option_of_a_check() -> None:
    for name, option in CHECK_OPTIONS.items():
        assert option.doc[0].isupper() or option.doc.split(":")[0] in ("true", "false"), name
        assert option.doc.endswith("."), name


# ── tables for single health checks ──────────────────────────────────────────────────────────

SSH, WEB = "tcp:127.0.0.1:22", "unit:web.service"


NAMED = {"ssh": SSH, "web": WEB}


def checks(**tables: dict[str, object]) -> dict[str, dict[str, object]]:
    """One layer, with tables for the two checks."""
    return {"health": {"checks": {NAMED[check]: table for check, table in tables.items()}}}


def shown(settings: Settings) -> dict[str, tuple[object, str]]:
    """The lines of ``updatectl config`` that tell of single checks."""
    return {
        name: (value, origin)
        for name, value, origin in settings.items()
        if name.startswith("health.checks")
    }


def test_of_a_checks_table_each_option_is_merged_by_itself() -> None:
    settings = merge(
        [
            ("vendor", checks(ssh={"timeout": "5s", "retries": 3}, web={"max_restarts": 1})),
            ("run", {"health": {"timeout": "1m", "tcp": ["127.0.0.1:22"]}}),
            ("etc", checks(ssh={"retries": 0, "required": False})),
        ]
    )
    assert settings.health.checks == {
        SSH: {"timeout": 5.0, "retries": 0, "required": False},
        WEB: {"max_restarts": 1},
    }
    assert shown(settings) == {
        f'health.checks."{SSH}".timeout': (5.0, "vendor"),
        f'health.checks."{SSH}".retries': (0, "etc"),
        f'health.checks."{SSH}".required': (False, "etc"),
        f'health.checks."{WEB}".max_restarts': (1, "vendor"),
    }


def test_without_tables_it_is_told_that_there_may_be_some() -> None:
    assert shown(Settings()) == {"health.checks": ({}, "default")}
    assert shown(merge([("f", checks(ssh={}))])) == {"health.checks": ({SSH: {}}, "f")}


OPTION = st.sampled_from(["timeout", "retries", "interval"])
LAYER = st.dictionaries(st.sampled_from(sorted(NAMED)), st.dictionaries(OPTION, st.integers(0, 99)))


@given(st.lists(LAYER, max_size=4))
def test_the_last_layer_that_sets_an_option_is_where_it_came_from(
    layers: list[dict[str, dict[str, object]]],
) -> None:
    settings = merge([(str(n), checks(**layer)) for n, layer in enumerate(layers)])
    last = {
        f'health.checks."{NAMED[check]}".{option}': (value, str(n))
        for n, layer in enumerate(layers)
        for check, options in layer.items()
        for option, value in options.items()
    }
    assert {name: told for name, told in shown(settings).items() if name != "health.checks"} == last
    again = Settings.from_dict(json.loads(json.dumps(settings.as_dict())))
    assert again == settings and shown(again) == shown(settings)


def test_what_changed_in_a_checks_table_is_told_key_by_key() -> None:
    none = Settings()
    one = merge([("a", checks(ssh={"retries": 1}))])
    two = merge([("b", checks(ssh={"retries": 2}, web={"timeout": 9}))])
    key = f'health.checks."{SSH}".retries'
    assert differences(none, one) == [f"{key} is now 1 (a)"]
    assert differences(one, two) == [
        f"{key} is now 2 (b)",
        f'health.checks."{WEB}".timeout is now 9.0 (b)',
    ]
    assert differences(two, one) == [
        f"{key} is now 1 (a)",
        f'health.checks."{WEB}".timeout is no longer set',
    ]
    assert differences(one, none) == [f"{key} is no longer set"]
    assert differences(one, one) == []


def test_changes_are_named_and_secrets_are_not_shown() -> None:
    before = Settings()
    after = merge([("f.toml", {"download": {"password": "hunter2"}, "server": {"group": "beta"}})])
    told = differences(before, after)
    assert any("server.group is now 'beta' (f.toml)" in t for t in told)
    assert any("download.password" in t for t in told)
    assert not any("hunter2" in t for t in told)
    for name in SECRETS:
        section, key = name.split(".")
        assert key in {f.name for f in dataclasses.fields(getattr(before, section))}
