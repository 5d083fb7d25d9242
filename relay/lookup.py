"""A name's addresses, asked of the system in a way that a resolver which hangs cannot harm."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable

from relay.rotation import Address

__all__ = ["look_up"]


def look_up(host: str, port: int) -> Awaitable[list[Address]]:
    """Look a name up in a thread of its own.

    Not in the event loop's pool: a resolver that hangs, which none can interrupt, would take a
    worker from everybody else, and at exit the loop waits for its pool. A daemon thread is left.
    There is no time limit; whoever awaits sets one.

    Raises:
        OSError, UnicodeError: by the awaitable: the name is unknown, or cannot be one.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[Address]] = loop.create_future()

    def deliver(found: list[Address], error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(found)
        else:
            future.set_exception(error)

    def work() -> None:
        found: list[Address] = []
        fault: Exception | None = None
        try:
            for family, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                # Numeric, and with the zone of a link-local address.
                name, _ = socket.getnameinfo(where, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
                found.append(Address(family, name, port))
        except (OSError, UnicodeError) as error:
            fault = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, found, fault)

    threading.Thread(target=work, name=f"look up {host}", daemon=True).start()
    return future
