"""Settings of the site's edge: the proxies it trusts, and how often may be tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.kit.settings import load_settings
from schemas.errors import SiteProblem


def test_no_proxy_is_trusted_unless_named(tmp_path: Path) -> None:
    settings = load_settings({"SUANPAN_DATA_DIR": str(tmp_path)})
    assert settings.http.trusted_proxies == ()
    tries = settings.attempts
    assert (tries.code_guesses, tries.code_window_s) == (10, 600)
    assert (tries.login_failures, tries.login_window_s) == (10, 600)
    assert (tries.registrations, tries.registration_window_s) == (5, 3_600)


def test_proxies_are_a_list_in_the_file_and_one_text_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[http]\ntrusted_proxies = ["10.0.0.0/8", "::1"]\n')
    env = {"SUANPAN_DATA_DIR": str(tmp_path)}
    assert load_settings(env).http.trusted_proxies == ("10.0.0.0/8", "::1")
    env["HTTP_TRUSTED_PROXIES"] = " 192.168.0.0/16 , 2001:db8::/32,"
    assert load_settings(env).http.trusted_proxies == ("192.168.0.0/16", "2001:db8::/32")


@pytest.mark.parametrize("text", ["example.org", "10.0.0.0/40", "10.0.0.0/8;::1", "*"])
def test_a_proxy_that_is_no_network_is_refused_with_what_to_write(
    tmp_path: Path, text: str
) -> None:
    env = {"SUANPAN_DATA_DIR": str(tmp_path), "HTTP_TRUSTED_PROXIES": text}
    with pytest.raises(SiteProblem) as caught:
        load_settings(env)
    assert "http.trusted_proxies" in caught.value.sentence
    assert "write 10.0.0.0/8" in caught.value.sentence


def test_one_text_where_the_file_wants_a_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[http]\ntrusted_proxies = "10.0.0.0/8"\n')
    with pytest.raises(SiteProblem) as caught:
        load_settings({"SUANPAN_DATA_DIR": str(tmp_path)})
    assert "http.trusted_proxies" in caught.value.sentence
