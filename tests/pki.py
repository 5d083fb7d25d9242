"""Certificates for tests, made on the spot: authorities, servers, clients, and their faults."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import NamedTuple

import trustme

from relay.exporters import ClientTls
from relay.receivers import ServerTls

NAMES = ("localhost", "127.0.0.1", "::1")
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
YESTERDAY = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)


class Pair(NamedTuple):
    cert: str
    key: str


def replace(path: Path, data: bytes) -> None:
    """Put a file in the place of another at once, as rotation should."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(data)
    os.replace(fresh, path)  # noqa: PTH105 - the call this is about


class Authority:
    """One CA in a folder; issues pairs into files there."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.path = folder / f"{name}.pem"
        self.ca.cert_pem.write_to_path(self.path)

    @property
    def file(self) -> str:
        return str(self.path)

    def pair(self, name: str, *names: str, expired: bool = False) -> Pair:
        """Issue a certificate into ``name``.pem and .key, taking the place of older ones."""
        issued = self.ca.issue_cert(
            *(names or NAMES),
            not_before=LONG_AGO if expired else None,
            not_after=YESTERDAY if expired else None,
        )
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        replace(cert, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        replace(key, issued.private_key_pem.bytes())
        return Pair(str(cert), str(key))

    def server(self, name: str = "server", *, mutual: bool = False) -> ServerTls:
        pair = self.pair(name)
        return ServerTls(pair.cert, pair.key, self.file if mutual else "")

    def client(self, name: str = "client", *, certificate: bool = False) -> ClientTls:
        if not certificate:
            return ClientTls(self.file)
        return ClientTls(self.file, *self.pair(name, "client.test"))
