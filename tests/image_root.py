"""Executes deploy/Dockerfile without an engine: its steps, in a clean Debian root of their own.

The base image is stood in for by a minimal Debian with the same Python, made once and kept in the
cache; every RUN happens in a chroot, and commands run as the image's user.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = "python3,python3-venv,ca-certificates"
SUITE: Final = "bookworm"
STEP_TIMEOUT_S: Final = 600
NO_NETWORK: Final = (
    "Failed to establish a new connection",
    "NewConnectionError",
    "Temporary failure in name resolution",
)


class CannotBuild(Exception):
    """This machine cannot do it; the text says why. `curable`: an installed package would help."""

    def __init__(self, why: str, *, curable: bool = False) -> None:
        super().__init__(why)
        self.curable = curable


def cache_folder() -> Path:
    return Path(os.environ.get("SUANPAN_CACHE_DIR", ROOT / ".cache")) / "image"


def base_root() -> Path:
    """The stand-in for `python:3.11-slim-bookworm`. Raises CannotBuild."""
    if os.geteuid() != 0:
        raise CannotBuild("only root can make a root folder")
    base = cache_folder() / f"base-{SUITE}"
    if (base / "ready").exists():
        return base
    if shutil.which("debootstrap") is None:
        raise CannotBuild("debootstrap is not installed (Debian's package)", curable=True)
    draft = base.with_name(f"{base.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(draft)]
    mirror = _mirror()
    done = subprocess.run(
        [*command, *([mirror] if mirror else [])],
        capture_output=True,
        text=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise CannotBuild(f"debootstrap failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    (draft / "ready").touch()
    draft.rename(base)
    return base


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of deploy/Dockerfile in order, continued lines joined."""
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].strip()) for line in lines]


class Image:
    """The finished image: a root folder, its environment, user, working folder and command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment: dict[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        self.user = "root"
        self.workdir = "/"
        self.command: list[str] = []

    def argv(self, command: list[str], environment: Mapping[str, str]) -> list[str]:
        """A command line that runs `command` inside, as the image's user."""
        variables = {**self.environment, **environment}
        return [
            "chroot",
            f"--userspec={self.user}",
            str(self.root),
            "/usr/bin/env",
            "--ignore-environment",
            *(f"{name}={value}" for name, value in variables.items()),
            "/bin/sh",
            "-c",
            f"cd {shlex.quote(self.workdir)} && exec {shlex.join(command)}",
        ]


def build(folder: Path) -> Image:
    """Runs every step; each FROM starts from a fresh copy of the base. Raises CannotBuild."""
    base = base_root()
    stages: dict[str, Image] = {}
    image: Image | None = None
    for word, rest in instructions():
        if word == "FROM":
            image = _begin(base, folder, rest, stages)
        else:
            assert image is not None
            _step(image, word, rest, stages)
    assert image is not None
    return image


def _begin(base: Path, folder: Path, rest: str, stages: dict[str, Image]) -> Image:
    name = rest.split(" AS ")[1] if " AS " in rest else "final"
    root = folder / name
    subprocess.run(["cp", "--archive", str(base), str(root)], check=True, timeout=STEP_TIMEOUT_S)
    _lend_network(root)
    image = stages[name] = Image(root)
    return image


def _lend_network(root: Path) -> None:
    """What lets pip inside reach the same registry as this machine's; no engine would copy it."""
    for name in ("etc/resolv.conf", "etc/hosts", "etc/pip.conf"):
        source = Path("/") / name
        if source.exists():
            shutil.copy(source, root / name)
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.exists():
        shutil.copy(certificates, root / "etc/ssl/certs/ca-certificates.crt")


def _step(image: Image, word: str, rest: str, stages: dict[str, Image]) -> None:
    match word:
        case "RUN":
            _run(image, rest)
        case "COPY":
            _copy(image, rest, stages)
        case "ENV":
            pairs = (pair.split("=", 1) for pair in shlex.split(rest))
            image.environment.update(dict(pairs))
        case "WORKDIR":
            image.workdir = rest
            (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = rest
        case "CMD":
            image.command = json.loads(rest)
        case "VOLUME" | "EXPOSE" | "STOPSIGNAL" | "HEALTHCHECK":
            pass
        case _:
            raise AssertionError(f"the Dockerfile has an instruction we do not execute: {word}")


def _run(image: Image, script: str) -> None:
    lent = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    lent.pop("PIP_FIND_LINKS", None)
    done = subprocess.run(
        image.argv(["/bin/sh", "-c", script], lent),
        capture_output=True,
        text=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        output = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        if any(sign in output for sign in NO_NETWORK):
            raise CannotBuild("no network for the packages of the image")
        raise AssertionError(f"RUN {script}\n{output}")


def _copy(image: Image, rest: str, stages: dict[str, Image]) -> None:
    words = shlex.split(rest)
    source_root = ROOT
    if words[0].startswith("--from="):
        source_root = stages[words.pop(0).removeprefix("--from=")].root
    *sources, target = words
    place = image.root / (target if target.startswith("/") else f"{image.workdir}/{target}").lstrip(
        "/"
    )
    for source in sources:
        given = source_root / source.lstrip("/")
        if given.is_dir():
            shutil.copytree(given, place, symlinks=True, dirs_exist_ok=True, ignore=_not_sent)
        else:
            goal = place / given.name if target.endswith("/") else place
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(given, goal)


def _not_sent(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]


def _mirror() -> str | None:
    """The Debian mirror that this machine uses: one that has our suite."""
    for file in (*Path("/etc/apt/sources.list.d").glob("*"), Path("/etc/apt/sources.list")):
        if not file.is_file():
            continue
        for stanza in file.read_text().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
            if SUITE in fields.get("Suites", "").split():
                return fields["URIs"].split()[0]
            for line in stanza.splitlines():
                words = [word for word in line.split() if not word.startswith("[")]
                if words[:1] == ["deb"] and words[2:3] == [SUITE]:
                    return words[1]
    return None
