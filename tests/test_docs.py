"""The documentation held against the code: references, links, examples, the site."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from docs import examples, generate
from relay.config import SETTINGS, load
from relay.config.reference import default
from relay.config.settings import twin
from relay.telemetry import DROP_REASONS, FILTER_REASONS, METRICS, PREFIX

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in TOP)])
KNOWN = {twin(name) for setting in SETTINGS for name in setting.names}

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(path: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """Fenced blocks of a page in one of the languages: line, and content without indentation."""
    text = path.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        if found[2] in languages:
            lines = [line.removeprefix(found[1]) for line in found[3].splitlines()]
            yield text[: found.start()].count("\n") + 1, "\n".join(lines) + "\n"


# ---------------------------------------------------------------- references


@pytest.mark.parametrize("page", generate.PAGES)
def test_reference_pages_are_what_the_code_says(page: str) -> None:
    written = (DOCS / page).read_text(encoding="utf-8")
    assert written == generate.PAGES[page](), "run make docs"


def test_the_metrics_page_has_every_metric_and_reason() -> None:
    page = (DOCS / "reference/metrics.md").read_text(encoding="utf-8")
    for info in METRICS.values():
        total = "_total" if info.kind == "counter" else ""
        assert f"| `{PREFIX}{info.name}{total}` | {info.kind} |" in page
    for reason in (*FILTER_REASONS, *DROP_REASONS):
        assert f"| `{reason}` |" in page


def _named(pattern: str, page: Path) -> set[str]:
    return set(re.findall(pattern, page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_name_only_settings_that_there_are(page: Path) -> None:
    # RELAY_*, RELAY_EXPORTER_* and RELAY_X are ways to speak of many.
    named = {each for each in _named(r"\bRELAY_[A-Z0-9_]+(?![A-Z0-9_*])", page) if each[-1] != "_"}
    unknown = named - KNOWN - {"RELAY_X", "RELAY_X_Y", "RELAY_EXPORTER_X"}
    # Decisions also tell of names that were not taken.
    assert not unknown or page.parent.name == "decisions", sorted(unknown)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_name_only_metrics_that_there_are(page: Path) -> None:
    known = {PREFIX + info.name for info in METRICS.values()} | {f"{PREFIX}build_info"}
    suffixes = r"(_total|_bucket|_count|_sum)?"
    unknown = {
        each
        for each in _named(rf"\b{PREFIX}[a-z_]+\b", page)
        if each not in known and re.sub(f"{suffixes}$", "", each) not in known
    }
    assert not unknown


def _table(page: Path, head: str) -> list[list[str]]:
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(head):
            next(lines)
            break
    else:
        pytest.fail(f"{name(page)} has no table {head!r}")
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().split("|")[1:-1]])
    return rows


def test_the_readme_has_the_defaults_of_the_code() -> None:
    by_name = {n: setting for setting in SETTINGS for n in (setting.name, twin(setting.name))}
    seen = 0
    for variables, shown, *_ in _table(ROOT / "README.md", "| variable | default"):
        names = re.findall(r"`([A-Z_]+)`", variables)
        values = [value.strip("` ") for value in shown.split(", ")]
        assert names, variables
        for each, value in zip(names, values, strict=False):
            really = default(by_name[each]).partition(" (")[0]
            if value and not value.startswith("health checks"):
                assert value == really, f"{each}: README says {value}, the code {really}"
                seen += 1
    assert seen > 10


def test_the_readme_names_the_metrics_of_the_code() -> None:
    rows = _table(ROOT / "README.md", "| metric | meaning")
    named = {each for row in rows for each in re.findall(rf"`{PREFIX}(\w+)", row[0])}
    known = {
        f"{info.name}_total" if info.kind == "counter" else info.name for info in METRICS.values()
    }
    assert named
    assert named <= known


# ---------------------------------------------------------------- links

_LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)")


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    found = []
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.append(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        there = (page.parent / file).resolve() if file else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert not broken


# ---------------------------------------------------------------- examples

with_examples = [page for page in PAGES if "<!-- run" in page.read_text(encoding="utf-8")]


@cache
def unshared() -> list[str]:
    """How to run something in a network namespace of its own, where the usual ports are free."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return []
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", "--net", *user]
    tried = subprocess.run(
        [*command, "ip", "link", "set", "lo", "up"], capture_output=True, check=False
    )
    return command if tried.returncode == 0 else []


@pytest.mark.parametrize("page", with_examples, ids=name)
def test_examples_do_what_the_page_says(page: Path) -> None:
    if not unshared():
        pytest.skip("no network namespace can be had here (Linux, iproute2 and the right to)")
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    script = 'ip link set lo up && exec "$0" "$@"'
    command = ["sh", "-c", script, sys.executable, str(DOCS / "examples.py"), str(page)]
    done = subprocess.run(
        [*unshared(), *command], cwd=ROOT, capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r": [1-9]\d* examples work", done.stdout)


def test_every_marked_block_is_run() -> None:
    for page in with_examples:
        text = page.read_text(encoding="utf-8")
        assert len(examples.blocks(text)) == text.count("<!-- run"), name(page)


def test_what_an_example_expects() -> None:
    body = "$ one \\\n$ echo a\nfirst ... line\n...\nlast\n$ cat <<X\n> in\n> X\nin\n"
    assert examples.steps(body) == [
        ("one \\", []), ("echo a", ["first ... line", "...", "last"]), ("cat <<X\nin\nX", ["in"]),
    ]  # fmt: skip
    expected = ["first ... line", "...", "last"]
    assert examples.missing(expected, "x\nfirst 1 line\ny\nlast\n") == ""
    assert examples.missing(expected, "last\nfirst 1 line\n") == "last"
    assert examples.missing(["a.c"], "abc\n") == "a.c", "a dot is a dot"


def test_an_example_that_fails_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for body, why in (("$ false", "exit code 1"), ("$ echo a\nb", "no line 'b'")):
        page.write_text(f"<!-- run -->\n```console\n{body}\n```\n")
        with pytest.raises(SystemExit, match=why):
            examples.main(str(page))
    page.write_text("<!-- run: fails -->\n```console\n$ true\n```\n")
    with pytest.raises(SystemExit, match="exit code 0"):
        examples.main(str(page))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_shell_and_yaml_blocks_are_well_formed(page: Path) -> None:
    for line, body in fences(page, "sh", "bash"):
        done = subprocess.run(
            ["bash", "-n"], input=body, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, f"line {line}: {done.stderr}"
        for command in body.replace("\\\n", " ").splitlines():
            given = dict(re.findall(r" -e (\w+)=(\S+)", command))
            if any(each.startswith("RELAY_") for each in given):
                loaded = load({}, given)
                assert not (*loaded.faults, *loaded.warnings), f"line {line}: {command}"
    for line, body in fences(page, "yaml"):
        try:
            document = yaml.safe_load(body)
        except yaml.YAMLError as error:
            pytest.fail(f"line {line}: {error}")
        for environ in _environments(document):
            loaded = load({}, environ)
            assert not loaded.faults, f"line {line}: {loaded.faults}"
            assert not loaded.warnings, f"line {line}: {loaded.warnings}"


def _environments(node: Any) -> Iterator[Mapping[str, str]]:
    """Environments of containers that set anything of the relay's, wherever they stand."""
    if isinstance(node, list):
        for each in node:
            yield from _environments(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "environment" and isinstance(value, dict):
                environ = {str(k): str(v) for k, v in value.items()}
                if any(each.startswith("RELAY_") for each in environ):
                    yield environ
            yield from _environments(value)


# ---------------------------------------------------------------- the site


class _Loaded(HTMLParser):
    """What a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in {"script", "img", "iframe", "source"} and given.get("src"):
            self.urls.append(given["src"] or "")
        if tag == "link" and given.get("rel") in {"stylesheet", "icon", "preload", "preconnect"}:
            self.urls.append(given.get("href") or "")


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (make dev installs it)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = sorted(tmp_path.rglob("*.html"))
    assert len(built) >= len(list(DOCS.rglob("*.md")))
    for page in built:
        parser = _Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.urls, page
        foreign = [url for url in parser.urls if re.match(r"(https?:)?//", url)]
        assert not foreign, f"{page.name} fetches {foreign}"
    assert not list(tmp_path.rglob("*.py"))
