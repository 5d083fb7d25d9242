"""Addresses that stay ours while nothing listens on them."""

from __future__ import annotations

import errno
import socket
import sys

import pytest

from relay.receivers import Listen
from relay.sink.ports import Hold


def test_a_held_port_refuses_connections_and_is_nobody_elses() -> None:
    hold = Hold(Listen(host="127.0.0.1"))
    [address] = hold.addresses
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    with socket.socket() as other, pytest.raises(OSError) as caught:  # noqa: PT011 - errno below
        other.bind(address)
    assert caught.value.errno == errno.EADDRINUSE
    hold.release()
    hold.release()
    with socket.socket() as other:
        other.bind(address)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a hold ends while a server listens")
def test_a_server_may_listen_on_a_held_port() -> None:
    hold = Hold(Listen(host="127.0.0.1"))
    [address] = hold.addresses
    for _ in range(3):
        hold.listening()
        with (
            socket.create_server(address) as server,
            socket.create_connection(address) as client,
        ):
            accepted, _ = server.accept()
            accepted.close()
            assert client.recv(1) == b""
        hold.closed()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    hold.release()


def test_a_host_that_is_not_ours_is_an_error_that_names_it() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0"):
        Hold(Listen(host="192.0.2.1"))
