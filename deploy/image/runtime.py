"""Copy what the relay needs of this root file system, and no more: ``runtime.py DESTINATION``.

Runs while the image is built, with the interpreter of the relay's environment. What comes along:
the interpreter, its standard library, the libraries that these and the relay's packages link, the
system's certificates. No shell, no package manager, nothing that is setuid. Like distroless images,
it says in /var/lib/dpkg/status.d which Debian packages the files are from, for scanners to find.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HOME = "/opt/otlp-relay"
# Of the standard library: what is for developing, for terminals and screens, and for databases.
# With it go the libraries that nothing else links, which would have to be kept up to date.
UNUSED = (
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter",
    "turtledemo", "lib2to3", "ensurepip", "pydoc_data", "config-*",
    "_tkinter.*.so", "_curses*.so", "readline.*.so", "_sqlite3.*.so", "_dbm.*.so", "_gdbm.*.so",
    "nis.*.so", "curses", "dbm", "sqlite3",
)  # fmt: skip
# glibc loads these by name, when a thread is cancelled or a name is looked up: no file links them.
BY_NAME = ("libgcc_s.so.1", "libnss_dns.so.2", "libnss_files.so.2")
SYSTEM = (
    "/etc/ssl", "/usr/lib/ssl", "/usr/share/ca-certificates", "/etc/ld.so.cache",
    "/etc/os-release", "/usr/lib/os-release", "/etc/debian_version",
)  # fmt: skip
USERS = {
    "etc/passwd": "root:x:0:0:root:/:/sbin/nologin\nrelay:x:10001:10001::/:/sbin/nologin\n",
    "etc/group": "root:x:0:\nrelay:x:10001:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def output_of(*command: str | Path) -> str:
    """What one of Debian's tools prints, whatever its exit code: it may know a part only."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    return done.stdout


def linked(files: list[Path]) -> set[Path]:
    """The libraries that these files link, the loader included, as ``ldd`` finds them."""
    said = output_of("ldd", *files)
    absent = re.findall(r"^\s*(\S+) => not found", said, re.MULTILINE)
    if absent:
        raise SystemExit(f"libraries that are not there: {absent}")
    found = {Path(path) for path in re.findall(r"(/\S+) \(0x", said)}
    libc = next(path for path in found if path.name.startswith("libc.so"))
    return found | {libc.parent / name for name in BY_NAME if (libc.parent / name).exists()}


def copy(source: Path, root: Path, unused: tuple[str, ...] = ()) -> None:
    """Copy a file or folder to the same place under ``root``, and what a link points at."""
    # Where /lib is a link to /usr/lib, it is one there too.
    target = root / source.parent.resolve().relative_to("/") / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        if not target.is_symlink():
            target.symlink_to(source.readlink())
        copy(source.parent / source.readlink(), root)
    elif source.is_dir():
        ignore = shutil.ignore_patterns(*unused)
        shutil.copytree(source, target, symlinks=True, ignore=ignore, dirs_exist_ok=True)
    elif source.exists():
        shutil.copy2(source, target)


def packages(files: set[Path]) -> set[str]:
    """The Debian packages of these files; none where Debian does not know them."""
    names = [f"*/{path.parent.name}/{path.name}" for path in sorted(files)]
    said = output_of("dpkg-query", "-S", *names)
    return set(re.findall(r"^([^\s,:]+)(?::\w+)?: ", said, re.MULTILINE))


def main(destination: str) -> None:
    """Fill ``destination``."""
    root = Path(destination)
    root.mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):
        if (link := Path("/", name)).is_symlink():
            (root / name).symlink_to(link.readlink())
            (root / link.readlink()).mkdir(parents=True)
    for name in ("dev", "proc", "sys", "tmp"):
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)

    interpreter = Path(sys.executable)
    while interpreter.is_relative_to(HOME):  # the environment's own links come with it
        interpreter = interpreter.parent / interpreter.readlink()
    copy(interpreter, root)
    interpreter = interpreter.resolve()
    stdlib = Path(sysconfig.get_path("stdlib"))
    copy(stdlib, root, UNUSED)
    for name in SYSTEM:
        if Path(name).exists():
            copy(Path(name), root)
    for name, content in USERS.items():
        (root / name).write_text(content)

    extensions = [
        path
        for folder in (Path(HOME), root / stdlib.relative_to("/"))
        for path in sorted(folder.rglob("*.so*"))
    ]
    libraries = linked([interpreter, *extensions])
    for library in libraries:
        copy(library, root)

    status = root / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    files = {*libraries, interpreter, stdlib / "os.py", stdlib / "json/tool.py"}
    for package in {*packages(files), "ca-certificates", "base-files"}:
        if known := output_of("dpkg-query", "-s", package):
            (status / package).write_text(known)


if __name__ == "__main__":
    main(sys.argv[1])
