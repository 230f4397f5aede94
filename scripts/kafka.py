"""A real Kafka broker without a container engine, for development and tests: fetch, start, stop.

Standard library only, and it must not be used in production: one node, loopback, no security.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import string
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

JAVA_MAJOR_MIN: Final = 17
FETCH_TIMEOUT_S: Final = 900
COMMAND_TIMEOUT_S: Final = 60
READY_TIMEOUT_S: Final = 60
STOP_TIMEOUT_S: Final = 20
DEFAULT_PORT: Final = 9092

_ROOT: Final = Path(__file__).resolve().parent.parent
_MARKER: Final = "complete.json"
_PR_SET_PDEATHSIG: Final = 1
# A class-data archive would save 0.5 s of a 1.1 s start, and costs 50 MB per Java version.
_JVM_OPTIONS: Final = (
    "-Xms64m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
)


class KafkaProblem(RuntimeError):
    """The broker cannot be had here; the sentence says what is missing."""


def fetch(root: Path = _ROOT) -> Path:
    """The folder with the broker's jars, filled by Maven on first use.

    Where the folder is complete nothing is run and no network is needed. The place is
    `<root>/.cache/kafka/<hash of the POM>`; SUANPAN_CACHE_DIR replaces `<root>/.cache`.
    Raises KafkaProblem.
    """
    pom = root / "deploy" / "kafka" / "pom.xml"
    cache = Path(os.environ.get("SUANPAN_CACHE_DIR") or root / ".cache") / "kafka"
    folder = cache / hashlib.sha256(pom.read_bytes()).hexdigest()[:16]
    if _is_complete(folder):
        return folder
    find_java()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "fetch.lock"):
        if not _is_complete(folder):
            _download(pom, folder)
    return folder


def find_java() -> Path:
    """A Java of version 17 or newer: JAVA_HOME first, then PATH. Raises KafkaProblem."""
    home = os.environ.get("JAVA_HOME")
    candidates = [str(Path(home) / "bin" / "java")] if home else []
    candidates += [found] if (found := shutil.which("java")) else []
    for candidate in candidates:
        if _java_major(candidate) >= JAVA_MAJOR_MIN:
            return Path(candidate)
    raise KafkaProblem(
        f"Java {JAVA_MAJOR_MIN} or newer is needed for the Kafka broker: "
        "install it, or point JAVA_HOME at it"
    )


class Broker:
    """One broker process over one data folder. `pid` may be killed by anybody at any time.

    Start it from a thread that outlives it: Linux ends the child with the thread that made it.
    """

    def __init__(
        self,
        jars: Path,
        data_dir: Path,
        *,
        port: int | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """`more`: lines of server.properties beside ours."""
        self._more = dict(more or {})
        self._jars = jars
        self._data_dir = data_dir
        self.port = port or _free_port()
        self._controller_port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the running child, else None."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def log_path(self) -> Path:
        return self._data_dir / "broker.log"

    def start(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Format the storage where it is new, run the broker, wait until it answers.

        Does nothing while it runs. Raises KafkaProblem, with the end of the broker's log.
        """
        if self.pid is not None:
            return
        java = find_java()
        self._data_dir.mkdir(parents=True, exist_ok=True)
        properties = self._write_properties()
        if not (self._data_dir / "log" / "meta.properties").exists():
            self._format(java, properties)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java_command(java), "kafka.Kafka", str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - one system call, no lock taken
            )
        self.wait_ready(timeout_s=timeout_s)

    def wait_ready(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when the broker lists itself in its metadata. Raises KafkaProblem."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.pid is None:
                raise KafkaProblem(f"the broker ended while starting:\n{self._log_tail()}")
            if _lists_a_broker(self.port):
                return
            time.sleep(0.05)
        self.kill()
        raise KafkaProblem(f"the broker did not answer in {timeout_s:g} s:\n{self._log_tail()}")

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """A clean stop; after `timeout_s` a kill."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL, as a crash would be; what was acknowledged must be there after start()."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def wipe(self) -> None:
        """Stop, and forget everything: the next start() is a new cluster on the same port."""
        self.kill()
        shutil.rmtree(self._data_dir / "log", ignore_errors=True)

    def wait(self) -> int:
        """Block until the broker ends by itself; its exit status."""
        return 0 if self._process is None else self._process.wait()

    def _java_command(self, java: Path) -> list[str]:
        logging = self._data_dir / "log4j2.yaml"
        return [
            str(java),
            *_JVM_OPTIONS,
            f"-Dlog4j2.configurationFile={logging}",
            "-cp",
            f"{self._jars}/*",
        ]

    def _write_properties(self) -> Path:
        source = _ROOT / "deploy" / "kafka"
        shutil.copyfile(source / "log4j2.yaml", self._data_dir / "log4j2.yaml")
        template = string.Template((source / "server.properties").read_text())
        properties = self._data_dir / "server.properties"
        ours = template.substitute(
            port=self.port,
            controller_port=self._controller_port,
            log_dir=self._data_dir / "log",
        )
        more = [f"{name}={value}\n" for name, value in self._more.items()]
        properties.write_text(f"{ours}\n{''.join(more)}")
        return properties

    def _format(self, java: Path, properties: Path) -> None:
        # Kafka writes a cluster id as 16 bytes in URL-safe base64 without padding.
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        command = [*self._java_command(java), "kafka.tools.StorageTool", "format"]
        # `=`: an id may begin with a dash.
        command += [f"--cluster-id={cluster}", "-c", str(properties)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise KafkaProblem(f"the broker's storage was not formatted:\n{done.stderr[-2000:]}")

    def _log_tail(self) -> str:
        if not self.log_path.exists():
            return "(no log)"
        return self.log_path.read_text(errors="replace")[-2000:]


def _download(pom: Path, folder: Path) -> None:
    mvn = shutil.which("mvn")
    if mvn is None:
        raise KafkaProblem("Maven is needed once to fetch the Kafka broker: install `mvn`")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = [mvn, "-q", "-B", "-C", "-f", str(pom), "dependency:copy-dependencies"]
    command.append(f"-DoutputDirectory={partial}")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KafkaProblem(f"Maven did not finish in {FETCH_TIMEOUT_S} s") from error
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if "[ERROR]" in line]
        raise KafkaProblem("Maven could not fetch the Kafka broker:\n" + "\n".join(lines[:5]))
    sizes = {jar.name: jar.stat().st_size for jar in partial.glob("*.jar")}
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    # Written last: without it the folder counts as unfinished.
    (folder / _MARKER).write_text(json.dumps(sizes, indent=1, sort_keys=True))


def _is_complete(folder: Path) -> bool:
    try:
        sizes: dict[str, int] = json.loads((folder / _MARKER).read_bytes())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _java_major(java: str) -> int:
    try:
        done = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)', done.stderr)
    return int(found.group(1)) if found else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have died before the call above.
        if os.getppid() != parent:
            os._exit(1)

    return arm


def _lists_a_broker(port: int) -> bool:
    """Metadata v1 for no topics (https://kafka.apache.org/protocol): is anybody registered?"""
    request = struct.pack(">hhih", 3, 1, 1, -1) + struct.pack(">i", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(12, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(answer) == 12 and struct.unpack(">iii", answer)[2] > 0


def main(arguments: list[str] | None = None) -> int:
    """The command line: `fetch`, or `start --dir D [--port N]` in the foreground."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="get the broker's jars")
    start = commands.add_parser("start", help="run a broker until interrupted")
    start.add_argument("--dir", type=Path, required=True, help="where its data lies")
    start.add_argument("--port", type=int, default=DEFAULT_PORT, help="0: any free one")
    chosen = parser.parse_args(arguments)
    try:
        jars = fetch()
        if chosen.command == "fetch":
            print(jars)
            return 0
        return _run(Broker(jars, chosen.dir.resolve(), port=chosen.port))
    except KafkaProblem as problem:
        print(f"kafka: {problem}", file=sys.stderr)
        return 1


def _run(broker: Broker) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        broker.start()
        print(f"kafka: ready at {broker.bootstrap}, log in {broker.log_path}", flush=True)
        return broker.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        broker.stop()


if __name__ == "__main__":
    sys.exit(main())
