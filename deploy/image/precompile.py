"""Compile all that the relay loads, standard library included, into PYTHONPYCACHEPREFIX.

Official Python images carry no bytecode of the standard library, and on a read-only root none can
be kept: every start and every health check would compile it again. Runs while the image is built,
with the interpreter of the relay's environment.
"""

from __future__ import annotations

import compileall
import importlib
import pkgutil
import sys
import sysconfig
from py_compile import PycInvalidationMode

import relay

# What is imported only when it is needed.
LATER = (
    "aiohttp.web", "encodings.idna", "google.protobuf.message_factory", "grpc.aio",
    "prometheus_client", "re2", "runpy", "uvloop",
)  # fmt: skip
# What the image does not have: it is installed from requirements/run.txt alone.
EXTRAS = ("h2corn",)


def main() -> None:
    """Import every module of the relay, then compile what that loaded."""
    for module in pkgutil.walk_packages(relay.__path__, "relay."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
    for name in LATER:
        importlib.import_module(name)
    stdlib, site = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    loaded = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    # Unchecked: the sources never change, and equal sources give equal files.
    mode = PycInvalidationMode.UNCHECKED_HASH
    done = True
    for path in sorted(loaded):
        if path.endswith(".py") and path.startswith(stdlib):
            done &= bool(compileall.compile_file(path, quiet=1, invalidation_mode=mode))
    done &= bool(compileall.compile_dir(site, quiet=1, workers=0, invalidation_mode=mode))
    if not done:
        raise SystemExit("some files do not compile")


if __name__ == "__main__":
    main()
