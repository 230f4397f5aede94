"""docker-compose.yaml, the image and the settings say the same thing of the scaled shape."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from backend.kit.settings import (
    DATA_DIR_VARIABLE,
    Settings,
    _keys,
    load_settings,
    variable_of,
)

ROOT: Final = Path(__file__).resolve().parents[2]
ROLES: Final = ("api", "worker", "projector", "publisher", "witness")
OURS: Final = ("migrate", *ROLES)
THEIRS: Final = ("postgres", "valkey", "kafka")
CHOICES: Final = {"PORT": "8000", "HTTP_TRUSTED_PROXIES": "127.0.0.1"}
"""What an operator may choose, with what stands there until they do; all else is secret."""
REFERENCE: Final = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yaml").read_text())


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest) in order, continued lines joined."""
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `deploy/new_env.py` writes."""
    target = tmp_path_factory.mktemp("env") / ".env"
    subprocess.run([sys.executable, ROOT / "deploy" / "new_env.py", target], check=True, timeout=60)
    assert target.stat().st_mode & 0o777 == 0o600
    lines = [line for line in target.read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def test_the_services_are_the_parts_and_one_per_role(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {*OURS, *THEIRS}
    for role in OURS:
        assert compose["services"][role]["command"] == ["suanpan", role]


def test_our_services_share_one_image(compose: dict[str, Any]) -> None:
    images = {compose["services"][role]["image"] for role in OURS}
    assert len(images) == 1
    for role in OURS:
        assert compose["services"][role]["build"]["dockerfile"] == "deploy/Dockerfile"


@pytest.mark.parametrize("role", OURS)
def test_the_command_knows_the_role(role: str) -> None:
    command = Path(sys.executable).with_name("suanpan")
    answer = subprocess.run([command, role, "--help"], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("role", OURS)
def test_settings_accept_the_environment_of_the_role(
    role: str, compose: dict[str, Any], chosen: dict[str, str], tmp_path: Path
) -> None:
    environment = filled(compose["services"][role]["environment"], chosen)
    known = {variable_of(key) for key, _ in _keys(Settings)} | {DATA_DIR_VARIABLE}
    assert environment.keys() <= known
    settings = load_settings({**environment, DATA_DIR_VARIABLE: str(tmp_path)})
    assert settings.port == 8094
    assert settings.secret == chosen["SECRET"]
    assert (settings.database.owner_url is not None) == (role == "migrate")
    assert (settings.database.url is None) == (role == "witness")
    assert settings.kafka.bootstrap_servers == "kafka:9092"


def test_no_secret_has_a_default(compose: dict[str, Any]) -> None:
    found = REFERENCE.findall((ROOT / "docker-compose.yaml").read_text())
    assert len(found) > 5
    for name, kind, words in found:
        if name in CHOICES:
            assert (kind, words) == (":-", CHOICES[name])
        else:
            assert kind == ":?", name
            assert "deploy/new_env.py" in words, name
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name or "SECRET" in name:
                assert str(value).startswith("${"), name


def test_generated_environment_answers_every_reference(chosen: dict[str, str]) -> None:
    names = {name for name, _, _ in REFERENCE.findall((ROOT / "docker-compose.yaml").read_text())}
    assert names == chosen.keys()
    secret = [chosen[name] for name in chosen.keys() - {*CHOICES, "KAFKA_CLUSTER_ID"}]
    assert len(set(secret)) == len(secret)
    assert all(len(value) >= 64 for value in secret)


def test_generated_environment_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / ".env"
    target.write_text("SECRET=kept\n")
    answer = subprocess.run(
        [sys.executable, ROOT / "deploy" / "new_env.py", target], capture_output=True, timeout=60
    )
    assert answer.returncode == 1
    assert target.read_text() == "SECRET=kept\n"


def test_every_long_running_service_tells_its_health(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name == "migrate":
            assert service["restart"] == "no"
            continue
        assert service["healthcheck"]["test"], name
        if name in ROLES:
            assert "/health" in service["healthcheck"]["test"][-1]


def test_services_wait_for_what_they_cannot_start_without(compose: dict[str, Any]) -> None:
    waits = {name: compose["services"][name].get("depends_on", {}) for name in OURS}
    assert waits["migrate"]["postgres"]["condition"] == "service_healthy"
    for role in ("api", "worker", "projector", "publisher"):
        assert waits[role]["migrate"]["condition"] == "service_completed_successfully"
    for role in ("worker", "projector", "publisher", "witness"):
        assert waits[role]["kafka"]["condition"] == "service_healthy"
    assert "kafka" not in waits["api"], "the site works while Kafka is down"


def test_kafka_keeps_everything_for_ever(compose: dict[str, Any]) -> None:
    environment = compose["services"]["kafka"]["environment"]
    assert environment["KAFKA_LOG_RETENTION_MS"] == "-1"
    assert environment["KAFKA_LOG_RETENTION_BYTES"] == "-1"
    kept = [volume.split(":")[1] for volume in compose["services"]["kafka"]["volumes"]]
    assert environment["KAFKA_LOG_DIRS"] in kept


def test_kafka_is_the_version_that_the_tests_run(compose: dict[str, Any]) -> None:
    pom = (ROOT / "deploy" / "kafka" / "pom.xml").read_text()
    version = re.search(r"<kafka\.version>([\d.]+)<", pom)
    assert version is not None
    assert compose["services"]["kafka"]["image"] == f"apache/kafka:{version[1]}"


def test_named_volumes_are_declared_and_used(compose: dict[str, Any]) -> None:
    used = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith(".")
    }
    assert used == set(compose["volumes"])


def test_image_publishes_the_port_that_compose_maps(
    compose: dict[str, Any], dockerfile: list[tuple[str, str]]
) -> None:
    exposed = next(rest for word, rest in dockerfile if word == "EXPOSE")
    assert compose["services"]["api"]["ports"] == [f"${{PORT:-8000}}:{exposed}"]
    variables = dict(
        pair.split("=", 1) for word, rest in dockerfile if word == "ENV" for pair in rest.split()
    )
    assert variables["PORT"] == exposed
    assert variables["HOST"] == "0.0.0.0"  # noqa: S104 - inside a container
    for role in ROLES:
        environment = compose["services"][role]["environment"]
        assert environment["PORT"] == exposed
        assert environment[DATA_DIR_VARIABLE] == variables[DATA_DIR_VARIABLE]


def test_image_holds_every_package_and_runs_as_nobody_special(
    dockerfile: list[tuple[str, str]],
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = {
        source
        for word, rest in dockerfile
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert {name.rstrip("*") for name in include} <= copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines(), source
    words = [word for word, _ in dockerfile]
    user = next(rest for word, rest in dockerfile if word == "USER")
    assert user == "suanpan"
    assert words.index("USER") < words.index("CMD")
    assert dockerfile[-1] == ("CMD", '["suanpan", "serve"]')


def test_image_installs_only_what_the_lock_hashes(dockerfile: list[tuple[str, str]]) -> None:
    installs = [rest for word, rest in dockerfile if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert "--require-hashes -r requirements/run.txt" in installs[0]
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(installs[1].split())


def test_role_script_makes_the_roles_of_the_urls(compose: dict[str, Any]) -> None:
    script = ROOT / "deploy" / "postgres" / "10-roles.sh"
    assert os.access(script, os.X_OK)
    roles = set(re.findall(r"CREATE ROLE (\w+) LOGIN", script.read_text()))
    environment = compose["services"]["migrate"]["environment"]
    urls = (environment["DATABASE_URL"], environment["DATABASE_OWNER_URL"])
    assert roles == {re.split("[/:]", url)[3] for url in urls}


def filled(environment: dict[str, str], chosen: dict[str, str]) -> dict[str, str]:
    """The environment as compose would hand it over."""
    return {
        name: REFERENCE.sub(lambda found: chosen[found[1]], str(value))
        for name, value in environment.items()
    }


def test_what_workers_write_for_the_api_lies_in_a_volume_of_both(compose: dict[str, Any]) -> None:
    for service in ("api", "worker"):
        assert "objects:/data/objects" in compose["services"][service]["volumes"]
