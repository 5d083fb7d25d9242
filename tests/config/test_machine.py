import itertools
import re
import socket
from pathlib import Path

import pytest

from relay.config.machine import THIS_MACHINE, is_own_address, why_unreadable
from relay.exporters import ClientTls
from relay.receivers import ServerTls


def own_addresses() -> list[str]:
    """Addresses of this machine as the kernel lists them (Linux)."""
    table = Path("/proc/net/fib_trie")
    lines = table.read_text().splitlines() if table.exists() else []
    found = {
        above.split()[-1] for above, line in itertools.pairwise(lines) if "/32 host LOCAL" in line
    }
    return sorted(found | {"127.0.0.1"})


@pytest.mark.parametrize("address", own_addresses())
def test_knows_its_own_addresses(address: str) -> None:
    assert is_own_address(address)


# Documentation prefixes (RFC 5737, RFC 3849) and a multicast address.
@pytest.mark.parametrize("address", ["203.0.113.77", "2001:db8::77", "224.0.0.1"])
def test_other_addresses_are_not_its_own(address: str) -> None:
    assert not is_own_address(address)


def test_ipv6_loopback_where_there_is_one() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            there = True
    except OSError:
        there = False
    assert is_own_address("::1") is there


def test_says_why_a_file_cannot_be_read(tmp_path: Path) -> None:
    good = tmp_path / "cert.pem"
    good.write_text("x")
    assert why_unreadable(str(good)) == ""
    assert why_unreadable(str(tmp_path)) == "Is a directory"
    assert THIS_MACHINE.why_unreadable(str(tmp_path / "none")) == "No such file or directory"


def test_tells_which_version_is_installed() -> None:
    assert re.fullmatch(r"\d+\.\d+.*", THIS_MACHINE.installed("pytest"))
    assert THIS_MACHINE.installed("no-such-distribution") == ""


def test_looks_into_tls_files(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    assert THIS_MACHINE.examine_tls(ClientTls(ca_file=str(junk))) == (
        [f"the CA file '{junk}' holds no PEM certificate"],
        [],
    )
    (fault,), _ = THIS_MACHINE.examine_tls(ServerTls(str(junk), str(junk)))
    assert fault == f"the certificate file '{junk}' holds no PEM certificate"
