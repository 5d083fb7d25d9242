"""Configuration: flags and environment in, one frozen, checked value out.

``load(parse_flags(argv), environ)`` is all that a command needs; the table of settings behind it
is in :mod:`relay.config.settings`.
"""

from __future__ import annotations

from relay.config.loading import Config, Effective, Loaded, UnknownFlagError, load, parse_flags
from relay.config.machine import THIS_MACHINE, Machine
from relay.config.settings import GRPC_ENGINES, SETTINGS, SIGNAL_NAMES, Setting

__all__ = [
    "GRPC_ENGINES",
    "SETTINGS",
    "SIGNAL_NAMES",
    "THIS_MACHINE",
    "Config",
    "Effective",
    "Loaded",
    "Machine",
    "Setting",
    "UnknownFlagError",
    "load",
    "parse_flags",
]
