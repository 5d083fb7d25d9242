"""relay.receivers.sockets on real sockets of this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.receivers import Listen, sockets


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    """Sockets to be closed at the end of the test."""
    found: list[socket.socket] = []
    yield found
    for sock in found:
        sock.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


def test_localhost_is_127_0_0_1_and_where_there_is_one_ipv6_on_one_port(
    opened: list[socket.socket],
) -> None:
    opened += sockets.tcp_sockets(Listen("localhost", 0))
    hosts = [sock.getsockname()[0] for sock in opened]
    assert hosts == (["127.0.0.1", "::1"] if has_ipv6() else ["127.0.0.1"])
    assert len({sock.getsockname()[1] for sock in opened}) == 1
    for sock in opened:
        socket.create_connection(sock.getsockname()[:2], 5).close()
        assert re.fullmatch(r"(127\.0\.0\.1|\[::1\]):\d+", sockets.address(sock))


@needs_ipv6
def test_a_port_taken_on_ipv6_only_is_refused_and_nothing_stays_bound(
    opened: list[socket.socket],
) -> None:
    other = socket.socket(socket.AF_INET6)
    opened.append(other)
    other.bind(("::1", 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(OSError, match=rf"cannot listen on \[::1\]:{port}: another process") as info:
        sockets.tcp_sockets(Listen("localhost", port))
    assert info.value.errno == errno.EADDRINUSE
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


@needs_ipv6
def test_port_0_is_chosen_again_when_the_other_half_is_taken(
    opened: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = socket.socket(socket.AF_INET6)
    opened.append(taken)
    taken.bind(("::1", 0))
    taken.listen()
    real, asked = sockets._bind, []

    def first_choice_is_taken(host: str, port: int, backlog: int) -> socket.socket:
        asked.append((host, port))
        if len(asked) == 1:
            port = taken.getsockname()[1]
        return real(host, port, backlog)

    monkeypatch.setattr(sockets, "_bind", first_choice_is_taken)
    opened += sockets.tcp_sockets(Listen("localhost", 0))
    ports = {sock.getsockname()[1] for sock in opened[1:]}
    assert len(ports) == 1
    assert [host for host, _ in asked] == ["127.0.0.1", "::1"] * 2


@pytest.mark.parametrize("reuse", [0, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_served_port_is_not_shared(opened: list[socket.socket], reuse: int, host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    other = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    opened.append(other)
    if reuse:
        other.setsockopt(socket.SOL_SOCKET, reuse, 1)
    if ":" in host:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    other.bind((host, 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: another process"):
        sockets.tcp_sockets(Listen("localhost", port))


def test_our_port_is_not_taken_by_a_second_relay(opened: list[socket.socket]) -> None:
    opened += sockets.tcp_sockets(Listen("127.0.0.1", 0))
    port = opened[0].getsockname()[1]
    with pytest.raises(OSError, match="another process listens there"):
        sockets.tcp_sockets(Listen("127.0.0.1", port))


def test_a_port_with_connections_in_time_wait_is_had_again(opened: list[socket.socket]) -> None:
    (server,) = sockets.tcp_sockets(Listen("127.0.0.1", 0))
    port = server.getsockname()[1]
    server.setblocking(True)
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        accepted, _ = server.accept()
        accepted.close()  # the server closes first, so its side waits
        assert client.recv(1) == b""
    server.close()
    opened += sockets.tcp_sockets(Listen("127.0.0.1", port))


@needs_ipv6
def test_the_ipv6_wildcard_takes_ipv4_too(opened: list[socket.socket]) -> None:
    opened += sockets.tcp_sockets(Listen("::", 0))
    port = opened[0].getsockname()[1]
    socket.create_connection(("127.0.0.1", port), 5).close()
    socket.create_connection(("::1", port), 5).close()


def test_an_address_of_another_machine_and_an_unknown_name_are_clear_errors() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:4318: "):
        sockets.tcp_sockets(Listen("192.0.2.1", 4318))
    with pytest.raises(OSError, match=r"cannot listen on \[::g\]:4318: "):
        sockets.tcp_sockets(Listen("::g", 4318))


def test_unix_socket_has_its_mode_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "otlp.sock"
    sock, file = sockets.unix_socket(str(path), 0o660)
    with sock:
        assert sockets.address(sock) == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        file.remove()
        assert not path.exists()
        file.remove()


def test_the_umask_is_put_back(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        sock, file = sockets.unix_socket(str(tmp_path / "s"), 0o600)
        sock.close()
        file.remove()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_served_unix_socket_is_never_stolen(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    sock, file = sockets.unix_socket(path, 0o600)
    with sock:
        with pytest.raises(OSError, match=f"cannot listen on unix:{path}: another process") as info:
            sockets.unix_socket(path, 0o600)
        assert info.value.errno == errno.EADDRINUSE
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        file.remove()


def test_a_server_whose_backlog_is_full_is_not_taken_for_dead(
    tmp_path: Path, opened: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_PROBE_TIMEOUT", 0.05)
    path = str(tmp_path / "s")
    server = socket.socket(socket.AF_UNIX)
    opened.append(server)
    server.bind(path)
    server.listen(0)
    while True:  # until nobody else is let in
        client = socket.socket(socket.AF_UNIX)
        opened.append(client)
        client.setblocking(False)
        try:
            client.connect(path)
        except BlockingIOError:
            break
    with pytest.raises(OSError, match="another process listens there"):
        sockets.unix_socket(path, 0o600)
    assert Path(path).exists()


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    sock, file = sockets.unix_socket(path, 0o600)
    with sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        file.remove()


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(OSError, match="a file that is no socket is in the way"):
        sockets.unix_socket(str(path), 0o600)
    assert path.read_text() == "data"


def test_another_ones_socket_at_our_path_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    sock, file = sockets.unix_socket(str(path), 0o600)
    with sock:
        path.rename(tmp_path / "moved")
        other, other_file = sockets.unix_socket(str(path), 0o600)
        with other:
            file.remove()
            assert path.exists()
            other_file.remove()
            assert not path.exists()


def test_paths_that_cannot_be_had_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot listen on unix:.*/absent/s: No such file"):
        sockets.unix_socket(str(tmp_path / "absent" / "s"), 0o600)
    with pytest.raises(OSError, match=r"cannot listen on unix:.*: AF_UNIX path too long"):
        sockets.unix_socket(str(tmp_path / ("x" * 200)), 0o600)


def test_a_second_claimant_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_LOCK_TIMEOUT", 0.05)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="its directory is locked"):
            sockets.unix_socket(str(tmp_path / "s"), 0o600)
        fcntl.flock(directory, fcntl.LOCK_UN)
        sock, file = sockets.unix_socket(str(tmp_path / "s"), 0o600)
        sock.close()
        file.remove()
    finally:
        os.close(directory)


def test_a_claim_whose_body_fails_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        pytest.raises(OSError, match=f"cannot listen on unix:{path}: "),
        sockets.claim_unix(str(path), 0o600),
    ):
        pass  # nothing was bound
    assert not path.exists()
