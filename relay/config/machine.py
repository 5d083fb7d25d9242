"""The few questions about the machine that a configuration is checked against.

They are values handed to :func:`relay.config.load`, so that tests need no such machine.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from relay.exporters import ClientTls
from relay.receivers import ServerTls


def is_own_address(address: str) -> bool:
    """Whether a numeric address belongs to one of this machine's interfaces.

    A connected UDP socket sends nothing; the kernel picks its source address, and towards an own
    address that is the address itself. (Binding to it would not tell: with
    ``net.ipv4.ip_nonlocal_bind`` every address binds.)
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return bool(probe.getsockname()[0] == address)
    except OSError:
        return False


def why_unreadable(path: str) -> str:
    """Why a file cannot be read, in the system's words; empty when it can."""
    try:
        with open(path, "rb") as handle:  # noqa: PTH123 - a Path adds nothing here
            handle.read(1)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def installed(distribution: str) -> str:
    """The version of a distribution that is installed; empty when it is not."""
    from importlib import metadata  # noqa: PLC0415 - only for who chose another engine

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def examine_tls(files: ClientTls | ServerTls) -> tuple[list[str], list[str]]:
    """What makes the files unusable, and what of them is out of date or soon will be."""
    from relay import tls  # noqa: PLC0415 - only for who has TLS files

    now = time.time()  # noqa: TID251 - compared with the dates of certificates
    if isinstance(files, ServerTls):
        return tls.check_server(files), tls.server_warnings(files, now)
    return tls.check_client(files), tls.client_warnings(files, now)


@dataclass(frozen=True, slots=True)
class Machine:
    """What :func:`relay.config.load` asks; the defaults ask the real one."""

    is_own_address: Callable[[str], bool] = is_own_address
    why_unreadable: Callable[[str], str] = why_unreadable
    real_path: Callable[[str], str] = os.path.realpath
    installed: Callable[[str], str] = installed
    examine_tls: Callable[[ClientTls | ServerTls], tuple[list[str], list[str]]] = examine_tls


THIS_MACHINE = Machine()
