"""Settings: file, environment, flags, and one clear sentence for each fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.kit.settings import Settings, load_settings, variable_of
from schemas.errors import SiteProblem


def _site(folder: Path, text: str) -> dict[str, str]:
    (folder / "config.toml").write_text(text)
    return {"SUANPAN_DATA_DIR": str(folder)}


def _problem(env: dict[str, str], **overrides: object) -> str:
    with pytest.raises(SiteProblem) as caught:
        load_settings(env, **overrides)
    return caught.value.sentence


def test_nothing_set_gives_the_documented_defaults(tmp_path: Path) -> None:
    settings = load_settings({"SUANPAN_DATA_DIR": str(tmp_path)})
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8094, tmp_path)
    assert settings.relay.body_bytes_max == 20 * 1024 * 1024
    assert settings.billing.cny_per_usd == "7.3"
    assert settings.accounts.initial_points == "0"
    assert settings.invitations.inviter_points == settings.invitations.invited_points == "0"
    assert settings.database.url is settings.redis.url is settings.kafka.bootstrap_servers is None


def test_the_data_folder_is_dot_data_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings({}).data_dir == tmp_path / ".data"


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    env = _site(tmp_path, 'port = 1001\nhost = "a"\n[relay]\nidle_timeout_s = 5\nkeepalive_s = 6\n')
    env |= {"HOST": "b", "RELAY_IDLE_TIMEOUT_S": "7.5", "PORT": "1002"}
    settings = load_settings(env, port=1003, host=None)
    assert (settings.host, settings.port) == ("b", 1003)
    assert (settings.relay.idle_timeout_s, settings.relay.keepalive_s) == (7.5, 6)


@pytest.mark.parametrize(
    ("key", "variable"),
    [
        ("database.owner_url", "DATABASE_OWNER_URL"),
        ("redis.url", "REDIS_URL"),
        ("kafka.bootstrap_servers", "KAFKA_BOOTSTRAP_SERVERS"),
        ("secret", "SECRET"),
    ],
)
def test_documented_variables_are_the_keys_in_capitals(key: str, variable: str) -> None:
    assert variable_of(key) == variable


@pytest.mark.parametrize("text", ["-1", "1e3", "0.0000001", "many"])
def test_first_points_that_are_no_sum_are_refused_by_name(tmp_path: Path, text: str) -> None:
    env = {"SUANPAN_DATA_DIR": str(tmp_path)}
    for variable in ("ACCOUNTS_INITIAL_POINTS", "INVITATIONS_INVITER_POINTS"):
        assert variable in _problem({**env, variable: text})


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    env = {"SUANPAN_DATA_DIR": str(tmp_path), "DATABASE_URL": "", "PORT": " "}
    assert load_settings(env) == Settings(data_dir=tmp_path)


def test_booleans_are_read_from_the_environment(tmp_path: Path) -> None:
    env = {"SUANPAN_DATA_DIR": str(tmp_path), "DEMO_ENABLED": "false"}
    assert load_settings(env).demo.enabled is False


def test_an_unknown_key_names_itself_and_the_closest_known_one(tmp_path: Path) -> None:
    sentence = _problem(_site(tmp_path, "[relay]\nidle_timeout = 5\n"))
    assert "relay.idle_timeout " in sentence
    assert "Did you mean relay.idle_timeout_s?" in sentence


def test_an_unknown_table_names_its_first_key(tmp_path: Path) -> None:
    sentence = _problem(_site(tmp_path, "[rely]\nidle_timeout_s = 5\n"))
    assert "rely.idle_timeout_s" in sentence
    assert "relay.idle_timeout_s" in sentence


def test_a_group_given_as_a_value_says_what_it_holds(tmp_path: Path) -> None:
    assert "redis.url" in _problem(_site(tmp_path, 'redis = "redis://h"\n'))


def test_a_wrong_type_in_the_file_names_the_key(tmp_path: Path) -> None:
    sentence = _problem(_site(tmp_path, '[relay]\nidle_timeout_s = "long"\n'))
    assert "relay.idle_timeout_s" in sentence
    assert "expected float" in sentence


@pytest.mark.parametrize("port", ["70000", "-1", "http", "80.5"])
def test_a_bad_port_is_refused_by_name(tmp_path: Path, port: str) -> None:
    assert "PORT" in _problem({"SUANPAN_DATA_DIR": str(tmp_path), "PORT": port})


@pytest.mark.parametrize("text", ["cny_per_usd = 7.3", 'cny_per_usd = "seven"'])
def test_a_rate_that_is_no_decimal_text_says_what_to_write(tmp_path: Path, text: str) -> None:
    assert '"7.3"' in _problem(_site(tmp_path, f"[billing]\n{text}\n"))


def test_a_rate_of_zero_is_refused(tmp_path: Path) -> None:
    assert "more than zero" in _problem(_site(tmp_path, '[billing]\ncny_per_usd = "0.00"\n'))


def test_a_lease_that_is_renewed_too_rarely_is_refused(tmp_path: Path) -> None:
    env = {"SUANPAN_DATA_DIR": str(tmp_path), "LEASE_RENEW_SECONDS": "29"}
    assert "lease.renew_seconds" in _problem(env)


def test_an_owner_url_alone_is_refused(tmp_path: Path) -> None:
    env = {"SUANPAN_DATA_DIR": str(tmp_path), "DATABASE_OWNER_URL": "postgresql://o@h/d"}
    assert "without DATABASE_URL" in _problem(env)


def test_broken_toml_is_refused_with_its_place(tmp_path: Path) -> None:
    sentence = _problem(_site(tmp_path, "port = = 1\n"))
    assert "config.toml" in sentence
    assert "line 1" in sentence


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"port = 1 # \xff")
    assert "UTF-8" in _problem({"SUANPAN_DATA_DIR": str(tmp_path)})


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    assert "cannot be read" in _problem({"SUANPAN_DATA_DIR": str(tmp_path)})


def test_no_secret_is_shown_by_repr(tmp_path: Path) -> None:
    env = {
        "SUANPAN_DATA_DIR": str(tmp_path),
        "SECRET": "canary-secret",
        "DATABASE_URL": "postgresql://u:canary-db@h/d",
        "REDIS_URL": "redis://:canary-redis@h/0",
    }
    settings = load_settings(env)
    assert "canary" not in f"{settings!r} {settings.database!r} {settings.redis!r} {settings}"
