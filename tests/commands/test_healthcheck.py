import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from relay.commands import UsageError, healthcheck


class Handler(BaseHTTPRequestHandler):
    """/readyz as a relay has it; the server's ``status`` decides."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = self.path in {"/readyz", "/elsewhere?x=1"}
        self.send_response(getattr(self.server, "status", 200) if found else 404)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def address_string(self) -> str:
        return "test"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name upstream
        pass


class UnixServer(socketserver.UnixStreamServer):
    status = 200


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def relay(status: int = 200, host: str = "127.0.0.1") -> Iterator[int]:
    server = HTTPServer((host, 0), Handler)
    server.status = status  # type: ignore[attr-defined] # for the handler
    with serving(server):
        yield server.server_port


Captured = pytest.CaptureFixture[str]


def test_ready(capsys: Captured) -> None:
    with relay() as port:
        assert healthcheck.run(["--admin-listen", f"127.0.0.1:{port}"], {}) == 0
    assert capsys.readouterr() == (f"ready (127.0.0.1:{port})\n", "")


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "127.0.0.1", "0"])
def test_asks_where_the_relay_listens(host: str) -> None:
    with relay() as port:
        assert healthcheck.run([], {"RELAY_ADMIN_LISTEN": f"{host}:{port}"}) == 0


def test_localhost_is_also_ipv6(capsys: Captured) -> None:
    class Server(HTTPServer):
        address_family = socket.AF_INET6

    try:
        server = Server(("::1", 0), Handler)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with serving(server):
        for host in ("localhost", "[::1]", "[::]"):
            assert healthcheck.run([f"--admin-listen={host}:{server.server_port}"], {}) == 0


def test_the_flag_wins_over_the_variable() -> None:
    with relay() as port:
        environ = {"RELAY_ADMIN_LISTEN": "127.0.0.1:1"}
        assert healthcheck.run([f"--admin-listen=127.0.0.1:{port}"], environ) == 0


def test_url() -> None:
    with relay() as port:
        assert healthcheck.run(["--url", f"http://127.0.0.1:{port}"], {}) == 0
        assert healthcheck.run(["--url", f"http://127.0.0.1:{port}/"], {}) == 0
        assert healthcheck.run(["--url", f"http://127.0.0.1:{port}/elsewhere?x=1"], {}) == 0
        assert healthcheck.run(["--url", f"http://127.0.0.1:{port}/nowhere"], {}) == 1


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with serving(UnixServer(str(path), Handler)):
        assert healthcheck.run([], {"RELAY_ADMIN_LISTEN": f"unix:{path}"}) == 0
    path.unlink()
    assert healthcheck.run([], {"RELAY_ADMIN_LISTEN": f"unix:{path}"}) == 1


def test_not_ready(capsys: Captured) -> None:
    with relay(503) as port:
        assert healthcheck.run([f"--admin-listen=127.0.0.1:{port}"], {}) == 1
    assert capsys.readouterr().err == (
        f"not ready: 127.0.0.1:{port} answers 503 Service Unavailable\n"
    )


def test_nothing_there(capsys: Captured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert healthcheck.run([f"--admin-listen=localhost:{port}"], {}) == 1
    assert "refused" in capsys.readouterr().err


def test_gives_up_after_its_time(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert healthcheck.run([f"--admin-listen=127.0.0.1:{port}"], {}) == 1
    assert capsys.readouterr().err == f"no answer from 127.0.0.1:{port} within 0.05 s\n"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\xff"])
def test_something_else_there(answer: bytes, capsys: Captured) -> None:
    class Other(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answer)

    server = socketserver.TCPServer(("127.0.0.1", 0), Other)
    with serving(server):
        assert healthcheck.run([f"--admin-listen=127.0.0.1:{server.server_address[1]}"], {}) == 1
    assert "does not speak HTTP" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--admin-listen", "8888"], "the port is missing"),
        (["--admin-listen", "off"], "no admin listener"),
        (["--url", "https://localhost:8888"], "expected http://host:port/path"),
        (["--url", "localhost:8888"], "expected http://host:port/path"),
        (["--url", "http://localhost:8888/a b"], "expected http://host:port/path"),
    ],
)
def test_an_address_that_is_none_is_unhealthy(argv: list[str], says: str, capsys: Captured) -> None:
    assert healthcheck.run(argv, {}) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--adminlisten", "x"], ["x"], ["--url"], ["--url="]])
def test_usage_errors(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        healthcheck.run(argv, {})


def test_help(capsys: Captured) -> None:
    assert healthcheck.run(["--help"], {}) == 0
    assert "--admin-listen" in capsys.readouterr().out


def test_costs_what_a_bare_interpreter_costs() -> None:
    """Beyond a bare interpreter it loads our few files and two small modules of the interpreter."""
    code = (
        "import sys, __future__, _socket, importlib; bare = set(sys.modules)\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from relay.__main__ import main\n"
        "assert main(['healthcheck', '--admin-listen', sys.argv[1]]) == 0\n"
        "assert main(['healthcheck', '--url', 'http://' + sys.argv[1]]) == 0\n"
        "print(*sorted(set(sys.modules) - bare))"
    )
    with relay() as port:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, f"0:{port}"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1].split() == [
        "relay",
        "relay.__main__",
        "relay.addresses",
        "relay.commands",
        "relay.commands.healthcheck",
    ]
