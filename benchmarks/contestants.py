"""Who is measured: the relay, Rotel, the OpenTelemetry Collector; each as a real process.

Everyone gets an OTLP receiver for gRPC and HTTP on loopback, batches of 512 that wait at most
200 ms (what the peers wait by default), and an uncompressed OTLP gRPC exporter to the same sink.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from benchmarks import bodies, paced, process

ROOT: Final = Path(__file__).resolve().parents[1]
DEADLINE: Final = 30.0


class StartError(RuntimeError):
    """A process did not start."""


@dataclasses.dataclass(frozen=True)
class Ports:
    """Where one run listens; the kernel chose them."""

    grpc: int
    http: int
    admin: int
    sink: int


@dataclasses.dataclass(frozen=True)
class Setting:
    """What differs between runs of one contestant."""

    ports: Ports
    folder: Path
    tls: bool = False
    roomy: bool = False
    """A ring that holds all of a run, for loads that come faster than they can leave."""
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)


Command = tuple[list[str], dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """``command`` makes argv and environment. ``tls``: whether its receivers can."""

    name: str
    command: Callable[[Setting], Command]
    about: str
    tls: bool = True
    ours: bool = False


def free_ports(number: int) -> list[int]:
    """Ports that were free a moment ago, different from each other."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in made:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in made]


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of any contestant."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "RELAY_", "GRPC_", "ROTEL_", "PYTHON", "GO"))
        and not name.lower().endswith("_proxy")
    }


ROOMY: Final = {"RELAY_QUEUE_SIZE": "1048576", "RELAY_QUEUE_MAX_BYTES": "1073741824"}
FILTERS_OFF: Final = {"OTEL_EXCLUDED_URLS": "", "OTEL_DISABLE_SEND_RECEIVE_SPANS": "false"}


def _relay(setting: Setting, settings: Mapping[str, str]) -> Command:
    environ = {
        "RELAY_GRPC_LISTEN": f"127.0.0.1:{setting.ports.grpc}",
        "RELAY_HTTP_LISTEN": f"127.0.0.1:{setting.ports.http}",
        "RELAY_ADMIN_LISTEN": f"127.0.0.1:{setting.ports.admin}",
        "RELAY_EXPORTER_ENDPOINT": f"http://127.0.0.1:{setting.ports.sink}",
        "RELAY_SHUTDOWN_LINGER": "0",
        "RELAY_SHUTDOWN_TIMEOUT": "1000",
        **(ROOMY if setting.roomy else {}),
        **settings,
    }
    if setting.tls:
        cert, key = certificate(setting.folder)
        environ |= {"RELAY_TLS_CERT_FILE": str(cert), "RELAY_TLS_KEY_FILE": str(key)}
    environ |= setting.environ
    return [sys.executable, "-m", "relay", "run"], environ


def _relay_bare(setting: Setting) -> Command:
    return _relay(setting, {"RELAY_SCHEDULE_DELAY": "200", **FILTERS_OFF})


def _relay_defaults(setting: Setting) -> Command:
    return _relay(setting, {})


def _relay_h2corn(setting: Setting) -> Command:
    engine = {"RELAY_GRPC_ENGINE": "h2corn"}
    return _relay(setting, {"RELAY_SCHEDULE_DELAY": "200", **engine, **FILTERS_OFF})


def _rotel(setting: Setting) -> Command:
    binary = rotel_binary()
    assert binary is not None
    return [
        str(binary), "start", "--exporter", "otlp",
        "--otlp-grpc-endpoint", f"127.0.0.1:{setting.ports.grpc}",
        "--otlp-http-endpoint", f"127.0.0.1:{setting.ports.http}",
        "--otlp-exporter-endpoint", f"http://127.0.0.1:{setting.ports.sink}",
        "--otlp-exporter-compression", "none",
        "--batch-max-size", "512",
        "--otlp-grpc-max-recv-msg-size-mib", "16",
        "--pid-file", str(setting.folder / "rotel.pid"),
        "--log-file", str(setting.folder / "rotel.log"),
    ], {}  # fmt: skip


def _otelcol(setting: Setting) -> Command:
    tls = ""
    if setting.tls:
        cert, key = certificate(setting.folder)
        tls = f"\n        tls: {{cert_file: {cert}, key_file: {key}}}"
    config = setting.folder / "otelcol.yaml"
    config.write_text(
        f"""
receivers:
  otlp:
    protocols:
      grpc:
        endpoint: 127.0.0.1:{setting.ports.grpc}
        max_recv_msg_size_mib: 16{tls}
      http:
        endpoint: 127.0.0.1:{setting.ports.http}{tls}
processors:
  batch:
    send_batch_size: 512
    send_batch_max_size: 512
exporters:
  {_otelcol_exporter()}:
    endpoint: 127.0.0.1:{setting.ports.sink}
    compression: none
    tls: {{insecure: true}}
service:
  telemetry:
    metrics: {{level: none}}
    logs: {{level: error}}
  pipelines:
    traces:
      receivers: [otlp]
      processors: [batch]
      exporters: [{_otelcol_exporter()}]
""",
        encoding="utf-8",
    )
    return ["otelcol", "--config", str(config)], {}


def _otelcol_exporter() -> str:
    # Renamed from "otlp" in 2026.
    listed = subprocess.run(["otelcol", "components"], capture_output=True, text=True, check=False)
    return "otlp_grpc" if "otlp_grpc" in listed.stdout else "otlp"


def rotel_binary() -> Path | None:
    """The agent inside the ``rotel`` package; None where it is not installed."""
    found = importlib.util.find_spec("rotel")
    if found is None or not found.submodule_search_locations:
        return None
    binary = Path(next(iter(found.submodule_search_locations))) / "rotel-agent"
    return binary if binary.exists() else None


RELAY: Final = Contestant(
    "relay", _relay_bare, "filters off, batches wait 200 ms, as the peers'", ours=True
)
DEFAULTS: Final = Contestant(
    "relay-defaults", _relay_defaults, "every setting at its default, filters included", ours=True
)
H2CORN: Final = Contestant(
    "relay-h2corn", _relay_h2corn, "as relay, with the optional engine h2corn for gRPC", ours=True
)
ROTEL: Final = Contestant(
    "rotel", _rotel, "Rotel, in Rust, batches of 512, otherwise defaults", tls=False
)
OTELCOL: Final = Contestant(
    "otelcol", _otelcol, "OpenTelemetry Collector, in Go, batch processor with 512"
)
PEERS: Final = {"rotel": ROTEL, "otelcol": OTELCOL}


def missing(peer: str) -> str | None:
    """Why a peer cannot be measured here, and what helps; None if it can."""
    if peer == "relay-h2corn" and importlib.util.find_spec("h2corn") is None:
        return "h2corn is not installed in this environment (it is the extra fast)"
    if peer == "rotel" and rotel_binary() is None:
        return "Rotel is not installed in this environment (pip install rotel)"
    if peer == "otelcol" and shutil.which("otelcol") is None:
        return (
            "otelcol is not on the PATH (build one with the Collector's builder, ocb: "
            "otlp receiver, batch processor, otlp exporter)"
        )
    return None


def version(name: str) -> str:
    """What is measured, in one line."""
    if name == "rotel":
        return f"rotel {importlib.metadata.version('rotel')}"
    if name == "otelcol":
        told = subprocess.run(["otelcol", "--version"], capture_output=True, text=True, check=False)
        return told.stdout.strip()
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return f"otlp-relay {importlib.import_module('relay').__version__} ({revision or 'no git'})"


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key (ECDSA P-256), made once for a folder."""
    cert, key = folder / "server.pem", folder / "server.key"
    if not cert.exists():
        import trustme  # noqa: PLC0415 - only for TLS

        issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
    return cert, key


class Running:
    """A contestant's process, ready."""

    def __init__(self, contestant: Contestant, setting: Setting, *, warm: bool = True) -> None:
        self.contestant = contestant
        self.setting = setting
        self._log = setting.folder / f"{contestant.name}.log"
        argv, environ = contestant.command(setting)
        began = time.perf_counter()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=ROOT,
                env=clean_environment() | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.answered_after = 0.0
        """Seconds from start to the first OTLP answer."""
        self.ready_after: float | None = None
        """Seconds from start to the first 200 of /readyz; None for those without."""
        try:
            self._wait(began)
            if warm:
                self._ask(began)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def endpoint(self, *, grpc: bool) -> str:
        ports = self.setting.ports
        return f"127.0.0.1:{ports.grpc if grpc else ports.http}"

    def _wait(self, began: float) -> None:
        bodies.trace_request(0)  # made once, before it counts
        while not _listens(self.setting.ports.grpc):
            if self.process.poll() is not None or time.perf_counter() - began > DEADLINE:
                raise StartError(f"{self.contestant.name} did not start:\n{self.tail()}")
            time.sleep(0.002)
        if self.contestant.ours:
            url = f"http://127.0.0.1:{self.setting.ports.admin}/readyz"
            while not _is_ready(url):
                if time.perf_counter() - began > DEADLINE:
                    raise StartError(f"{self.contestant.name} is not ready:\n{self.tail()}")
                time.sleep(0.002)
            self.ready_after = time.perf_counter() - began

    def _ask(self, began: float) -> None:
        task = paced.Task("127.0.0.1", self.setting.ports.grpc, 1000, 1, 0, tls=self.setting.tls,
                          connections=1, patience=2, lead=0)  # fmt: skip
        answer = paced.run(task)
        if not answer["answered"]:
            raise StartError(f"{self.contestant.name} does not answer: {answer}\n{self.tail()}")
        self.answered_after = time.perf_counter() - began

    def metric(self, series: str) -> float:
        """The value of a series on /metrics, named with its labels.

        Raises:
            KeyError: there is none.
        """
        url = f"http://127.0.0.1:{self.setting.ports.admin}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
        return float(values[series])

    def tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """End it; what is buffered is of no interest any more."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def running(contestant: Contestant, setting: Setting, *, warm: bool = True) -> Iterator[Running]:
    """``warm``: it has answered one empty OTLP request."""
    made = Running(contestant, setting, warm=warm)
    try:
        yield made
    finally:
        made.stop()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - loopback
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class SinkProcess:
    """benchmarks.sink as a process; its port stays the same through :meth:`stop` and start."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.port = 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sink", "--port", str(self.port),
             "--delay", str(self.delay)],
            cwd=ROOT, env=clean_environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.port = int(self._ask(""))

    def stop(self) -> None:
        """Be gone, at once, as a collector that was killed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self._process = None

    def _ask(self, command: str) -> str:
        assert self._process is not None, "the sink is stopped"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if command:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise StartError("the sink ended")
        return answer

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def spans(self) -> int:
        """How many it has accepted since it was started."""
        return int(self._ask("count").split()[0])

    def cpu_seconds(self) -> float:
        return process.cpu_seconds(self.pid)

    def wait_for(self, spans: int, seconds: float) -> int:
        """Wait until it has so many; how many it has then, or at the end of the time."""
        deadline = time.perf_counter() + seconds
        while (seen := self.spans()) < spans and time.perf_counter() < deadline:
            time.sleep(0.02)
        return seen


def import_times(module: str, most: int = 15) -> list[tuple[str, float]]:
    """Milliseconds of own import time by top-level package, the most expensive first."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    totals: dict[str, float] = {}
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
        top = name.partition(".")[0]
        top = top if top not in sys.stdlib_module_names else "standard library"
        totals[top] = totals.get(top, 0.0) + int(own) / 1000
    return sorted(totals.items(), key=lambda each: -each[1])[:most]


def installed_size(name: str) -> dict[str, float]:
    """MiB on disk by part: for the relay the packages it needs, Python itself not among them."""
    if name == "rotel":
        binary = rotel_binary()
        assert binary is not None
        return {"rotel-agent": binary.stat().st_size / 2**20}
    if name == "otelcol":
        found = shutil.which("otelcol")
        assert found is not None
        return {"otelcol": Path(found).resolve().stat().st_size / 2**20}
    sizes = {each: _folder_size(ROOT / each) for each in ("relay", "proto_stubs")}
    waiting = [_requirement(each) for each in _requirements()]
    while waiting:
        package = waiting.pop()
        if package is None or package in sizes:
            continue
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        files = [Path(str(each.locate())) for each in distribution.files or ()]
        sizes[package] = (
            sum(each.stat().st_size for each in files if each.is_file() and each.suffix != ".pyc")
            / 2**20
        )
        waiting += [_requirement(each) for each in distribution.requires or ()]
    return dict(sorted(sizes.items(), key=lambda each: -each[1]))


def _folder_size(folder: Path) -> float:
    return sum(each.stat().st_size for each in folder.rglob("*.py")) / 2**20


def _requirements() -> list[str]:
    import tomllib  # noqa: PLC0415 - only here

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies: list[str] = project["dependencies"]
    return dependencies


def _requirement(text: str) -> str | None:
    """The name in a requirement; None for those of an extra."""
    if "extra ==" in text:
        return None
    found = re.match(r"[A-Za-z0-9._-]+", text)
    return found[0].lower().replace("_", "-") if found else None
