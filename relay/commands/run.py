"""``otlp-relay run``: the daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from relay import logs, memory
from relay.commands import UsageError
from relay.config import Config, Loaded, UnknownFlagError, load, parse_flags

__all__ = ["run"]

_log = logging.getLogger(__name__)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Serve until a signal comes. 0 after an orderly shutdown, 1 for a failure, 2 for bad settings.

    Raises:
        UsageError: the command line has what no flag accepts.
    """
    try:
        loaded = load(parse_flags(argv), environ)
    except UnknownFlagError as error:
        raise UsageError(*error.faults) from None
    config = loaded.config
    logs.set_up(config.log_level if config else "info", config.log_format if config else "text")
    for warning in loaded.warnings:
        _log.warning("%s", warning)
    if config is None:
        for fault in loaded.faults:
            _log.error("%s", fault)
        return 2
    return _serve(config, loaded, environ)


def _serve(config: Config, loaded: Loaded, environ: Mapping[str, str]) -> int:
    if "GRPC_VERBOSITY" not in environ and config.log_level != "debug":
        # Its core writes lines of its own format to standard error, about every lost connection.
        os.putenv("GRPC_VERBOSITY", "NONE")
    memory.steady()
    with memory.without_system_roots(environ):
        import_module("aiohttp")
    from relay.daemon import Daemon  # noqa: PLC0415 - faults of settings are told sooner without
    from relay.tls import TlsError  # noqa: PLC0415

    async def serve() -> None:
        await Daemon(config, loaded.effective).run()

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve())
            _end_beside_threads()
    except TlsError as error:
        _log.error("%s", error)
        return 2
    except OSError as error:
        _log.error("%s", error.strerror or error)
        return 1
    return 0


def _end_beside_threads() -> None:
    """End the process now if a thread is left, which the interpreter would wait for.

    A name look-up cannot be cancelled; one that hangs must not outlast the shutdown limit.
    Everything is closed and counted by now.
    """
    if any(
        not each.daemon for each in threading.enumerate() if each is not threading.main_thread()
    ):
        logging.shutdown()
        os._exit(0)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it installs, else what asyncio brings."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    return uvloop.new_event_loop
