"""The structure that docs/ARCHITECTURE.md promises, held against the files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import relay

ROOT = Path(__file__).resolve().parents[1]

# From the bottom up. A room imports from the layers below its own, never from its own layer or from
# above. `receivers` is the package file with the values that others may know, `receivers.*` are
# the transports in it. A new room gets its place here, and in docs/ARCHITECTURE.md.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"relay", "proto_stubs"}),
    frozenset({"otlp", "limits", "addresses", "files", "histogram", "status", "tasks"})
    | frozenset({"memory", "web"}),
    frozenset({"wire", "otlp_json", "rotation"}),
    frozenset({"receivers", "exporters", "processors", "lookup"}),
    frozenset({"inspect", "response", "ring", "batch", "retry"}),
    frozenset(
        {"receivers.sockets", "receivers.health", "receivers.plain", "headers", "tls", "delivery"}
    )
    | frozenset({"processors.*"}),
    frozenset({"receivers.*", "exporters.*", "pipeline"}),
    frozenset({"telemetry", "logs", "page.*"}),
    frozenset({"page", "doctor"}),
    frozenset({"admin", "config", "probes"}),
    frozenset({"daemon", "sink"}),
    frozenset({"commands"}),
    frozenset({"commands.*"}),
    frozenset({"__main__"}),
)
# Rooms whose files may import each other, as long as there is no circle.
HOUSES = frozenset({"proto_stubs", "config", "processors.*", "sink"})

# Values in, values out: what decides knows neither the time nor the world.
PURE = frozenset({
    "proto_stubs", "otlp", "limits", "histogram", "status", "wire", "inspect", "response",
    "otlp_json", "ring", "batch", "retry", "delivery", "processors", "processors.*",
    "doctor", "page.*", "receivers.plain",
})  # fmt: skip
IMPURE = frozenset({
    "aiohttp", "asyncio", "concurrent", "grpc", "logging", "multiprocessing", "os", "pathlib",
    "prometheus_client", "random", "select", "signal", "socket", "ssl", "subprocess", "sys",
    "threading", "time", "uvloop",
})  # fmt: skip

# Third-party packages end in the files that do that IO.
CONFINED: dict[str, frozenset[str]] = {
    "grpc": frozenset({"receivers.grpc", "exporters.grpc", "tls", "sink.grpc", "commands.demo"}),
    "aiohttp": frozenset({
        "receivers.http", "exporters.http", "web", "sink.http", "commands.demo",
    }),
    "h2corn": frozenset({"receivers.h2"}),
    "yarl": frozenset({"exporters.http"}),  # aiohttp's own URL type
    "prometheus_client": frozenset({"telemetry", "admin", "commands.demo"}),
    "re2": frozenset({"processors.search", "processors.patterns"}),
    "uvloop": frozenset({"commands", "commands.run", "commands.sink", "commands.demo"}),
    # The forwarding path uses no message classes of OTLP, and only inspect, which looks for what is
    # at fault after a refusal, loads them in the daemon; sink prints what it got. traces has a
    # definition of its own, with nothing in it but trace ids.
    "google": frozenset({"inspect", "processors.traces", "sink.messages"}),
    "opentelemetry": frozenset({"inspect", "sink.messages", "commands.demo"}),
}  # fmt: skip

# No file of tests of its own, because: (source -> why)
UNMIRRORED: dict[str, str] = {
    "relay/limits.py": "values only",
    "relay/otlp.py": "values only",
    "relay/sink/grpc.py": "tests/sink/test_server.py drives both listeners through the sink",
    "relay/sink/http.py": "as sink/grpc.py",
    "relay/sink/report.py": "tests/commands/test_sink.py reads what it prints",
}
# Folders of tests of whole processes, and of what is deployed.
FREE = frozenset({"e2e", "deploy", "compose", "chaos", "fuzz", "benchmarks", "docs"})
# Tests of something that is not one file under relay/ (test -> of what)
UNSOURCED: dict[str, str] = {
    "tests/test_layout.py": "the structure",
    "tests/test_docs.py": "docs/, mkdocs.yml and README.md",
    "tests/test_ci.py": ".ci/run and .ci/find-python",
    "tests/test_requirements.py": "requirements/ and pyproject.toml",
    "tests/test_proto_stubs.py": "proto_stubs/",
}


class Import(NamedTuple):
    """One import: of which module, in which line, and whether it runs when the file is loaded."""

    module: str
    line: int
    at_load: bool


class Module(NamedTuple):
    name: str
    path: Path
    imports: tuple[Import, ...]


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_module(name: str) -> bool:
    base = ROOT.joinpath(*name.split("."))
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


def _walk(node: ast.AST, at_load: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for inner in child.body:
                yield inner, False
            for inner in child.orelse:
                yield inner, at_load
            continue
        yield child, at_load
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, at_load and not inside)


def _imports(path: Path) -> Iterator[Import]:
    for node, at_load in _walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield Import(inner if _is_module(inner) else node.module, node.lineno, at_load)


@cache
def modules() -> tuple[Module, ...]:
    paths = sorted([*ROOT.glob("relay/**/*.py"), *ROOT.glob("proto_stubs/*.py")])
    # Generators run by hand; they read protobuf's descriptors and are not in the wheel.
    paths = [path for path in paths if not path.name.startswith("generate")]
    return tuple(Module(_dotted(path), path, tuple(_imports(path))) for path in paths)


def short(module: str) -> str:
    """`relay.receivers.http` -> `receivers.http`; proto_stubs and relay itself stay."""
    return module.removeprefix("relay.")


def room(module: str) -> str:
    name = short(module)
    if any(name in layer for layer in LAYERS):
        return name
    top, _, rest = name.partition(".")
    return f"{top}.*" if rest and any(f"{top}.*" in layer for layer in LAYERS) else top


def level(module: str) -> int:
    name = room(module)
    for number, layer in enumerate(LAYERS):
        if name in layer:
            return number
    pytest.fail(f"{module}: no place in LAYERS of tests/test_layout.py; give it one")


def ours(module: str) -> bool:
    return module.partition(".")[0] in {"relay", "proto_stubs"}


def test_the_walk_sees_modules_and_imports() -> None:
    seen = {module.name: {item.module for item in module.imports} for module in modules()}
    assert "proto_stubs" in seen["relay.otlp"]
    assert "relay.otlp" in seen["relay.exporters"]


def test_imports_go_downward_only() -> None:
    wrong = []
    for module in modules():
        for item in module.imports:
            if not ours(item.module):
                continue
            here, there = room(module.name), room(item.module)
            if here == there and (here in HOUSES or module.name == item.module):
                continue
            # A package may put its own members together, in a function: no circle at load.
            if not item.at_load and item.module.startswith(f"{module.name}."):
                continue
            if level(item.module) >= level(module.name):
                wrong.append(f"{module.path.relative_to(ROOT)}:{item.line}: {here} -> {there}")
    assert not wrong, "imports sideways or upward:\n" + "\n".join(wrong)


def test_no_import_circles_at_load() -> None:
    graph = {
        module.name: {item.module for item in module.imports if item.at_load and ours(item.module)}
        for module in modules()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            pytest.fail("import circle: " + " -> ".join((*way[way.index(name) :], name)))
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_what_decides_knows_no_clock_and_no_io() -> None:
    wrong = [
        f"{module.path.relative_to(ROOT)}:{item.line}: {item.module}"
        for module in modules()
        if room(module.name) in PURE
        for item in module.imports
        if item.module.partition(".")[0] in IMPURE
    ]
    assert not wrong, "pure modules import IO or a clock:\n" + "\n".join(wrong)


def test_third_party_packages_stay_in_their_files() -> None:
    wrong = []
    for module in modules():
        for item in module.imports:
            package = item.module.partition(".")[0]
            if ours(package) or package in sys.stdlib_module_names:
                continue
            if short(module.name) not in CONFINED.get(package, frozenset()):
                wrong.append(f"{module.path.relative_to(ROOT)}:{item.line}: {item.module}")
    assert not wrong, "third-party imports outside their files (see CONFINED):\n" + "\n".join(wrong)


def test_every_source_file_has_its_test_file_with_tests() -> None:
    missing = []
    for module in modules():
        source = module.path.relative_to(ROOT)
        if source.parts[0] != "relay" or source.name == "__init__.py":
            continue
        if str(source) in UNMIRRORED:
            continue
        name = source.stem.strip("_")
        mirror = Path("tests", *source.parts[1:-1], f"test_{name}.py")
        if not (ROOT / mirror).is_file():
            missing.append(f"{source}: no {mirror}")
        elif "def test_" not in (ROOT / mirror).read_text() and (
            "TestCase" not in (ROOT / mirror).read_text()
        ):
            missing.append(f"{mirror}: no test in it")
    assert not missing, "\n".join(missing)


def test_every_test_file_mirrors_a_source_file() -> None:
    stray = []
    for path in sorted(ROOT.glob("tests/**/test_*.py")):
        test = path.relative_to(ROOT)
        if test.parts[1] in FREE or str(test) in UNSOURCED:
            continue
        name = test.stem.removeprefix("test_")
        folder = Path("relay", *test.parts[1:-1])
        files = [folder / f"{name}.py", folder / f"__{name}__.py", folder / name / "__init__.py"]
        if not any((ROOT / file).is_file() for file in files):
            stray.append(f"{test}: no {files[0]}")
    assert not stray, "\n".join(stray)


def test_tables_name_only_what_is_there() -> None:
    for source in UNMIRRORED:
        assert (ROOT / source).is_file(), source


def _imported(*command: str, expect: int) -> set[str]:
    """Every module that a Python process loads, by its own -X importtime."""
    environ = {key: value for key, value in os.environ.items() if "RELAY_" not in key}
    environ["RELAY_ADMIN_LISTEN"] = "127.0.0.1:1"  # nothing of ours listens on port 1
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr[-2000:]
    return {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }


def test_the_architecture_page_names_every_room_and_no_other() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    rooms = page.split("## Rooms")[1].split("```")[1]
    named = set(re.findall(r"\b(\w+)(?:\.py|/)(?=[ ,:]|$)", rooms, re.MULTILINE)) - {"relay"}
    top = {path.stem for path in (ROOT / "relay").iterdir() if path.suffix == ".py" or _room(path)}
    inner = {path.stem for path in (ROOT / "relay").rglob("*.py")}
    assert top - {"__init__"} - named == set()
    assert named - top - inner - {"proto_stubs"} == set()


def _room(path: Path) -> bool:
    return (path / "__init__.py").is_file()


def test_healthcheck_loads_the_standard_library_only() -> None:
    bare = _imported("-c", "pass", expect=0)
    loaded = _imported("-m", "relay", "healthcheck", expect=1) - bare
    assert any(name.startswith("relay.commands") for name in loaded), sorted(loaded)
    foreign = {
        name
        for name in loaded
        if name.partition(".")[0] not in sys.stdlib_module_names and not name.startswith("relay")
    }
    assert not foreign, f"healthcheck imports {sorted(foreign)}"
    # Each of these costs more than all the rest of a bare interpreter's start.
    assert not loaded & {"asyncio", "ssl", "http.client", "urllib.request", "email.parser"}


def _tracked() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout, so there is no list of tracked files: {error}")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_tracked_files_name_no_package_index_and_no_path_of_this_machine() -> None:
    # An install takes the index that its machine is set up with: a file that names one breaks
    # behind mirrors. Joined here, so that this file is no find of its own.
    hosts = [
        ".".join(labels)
        for labels in (
            ("pypi", "org"), ("pythonhosted", "org"), ("registry", "npmjs", "org"),
            ("registry", "yarnpkg", "com"), ("proxy", "golang", "org"), ("sum", "golang", "org"),
            ("crates", "io"), ("deb", "debian", "org"), ("security", "debian", "org"),
            ("repo1", "maven", "org"), ("repo", "maven", "apache", "org"),
        )
    ]  # fmt: skip
    needles = [host.encode() for host in hosts] + [f"{ROOT}/".encode(), f"{sys.prefix}/".encode()]
    found = []
    tracked = _tracked()
    assert len(tracked) > 20
    for path in tracked:
        content = path.read_bytes()
        found += [f"{path.relative_to(ROOT)}: {n.decode()}" for n in needles if n in content]
    assert not found, "\n".join(found)


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "relay/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", relay.__version__)


def test_the_wheel_holds_the_typed_packages_the_command_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed (make dev installs it)")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", str(tmp_path)], cwd=ROOT, check=True, timeout=50)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"otlp_relay-{relay.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"otlp_relay-{relay.__version__}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert "otlp-relay = relay.__main__:main" in entry_points
    assert {"relay/py.typed", "proto_stubs/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    sources = {str(module.path.relative_to(ROOT)) for module in modules()}
    assert sources <= set(names)
    assert {name.partition("/")[0] for name in names} == {"relay", "proto_stubs", info}
    assert not [name for name in names if "generate" in name or "test" in name]
