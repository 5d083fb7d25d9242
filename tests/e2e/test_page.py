"""The status page in a real browser: real relays, and crafted states behind the real listener."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from relay import page
from relay.admin import Admin
from relay.otlp import SIGNALS, TRACES
from relay.receivers import Listen
from relay.sink import Behaviour, Sink
from tests.e2e.browser import PROGRAM, Browser
from tests.e2e.conftest import StartRelay
from tests.e2e.harness import DEADLINE, RelayProcess, numbered_request, send

AXE = Path(__file__).with_name("axe")
INSTALLING = 120.0
SECRET = "sesame-open-the-door"
HOSTILE = '<img src="x" onerror="document.title=\'taken\'"><script>document.title="taken"</script>'

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed"),
    pytest.mark.timeout(INSTALLING + 3 * DEADLINE),
]


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with Browser(tmp_path / "profile") as browser:
        await browser.look()
        yield browser


@pytest.fixture(scope="session")
def axe() -> str:
    """The rules of axe-core, as a script."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, so there is no axe-core")
    lock, script = AXE / "package-lock.json", AXE / "node_modules" / "axe-core" / "axe.min.js"
    stamp = AXE / "node_modules" / ".installed"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=AXE, check=True, timeout=INSTALLING)
        stamp.write_bytes(lock.read_bytes())
    return script.read_text(encoding="utf-8")


async def headline(browser: Browser, text: str) -> None:
    await browser.until(
        f"document.querySelector('#headline')?.textContent === {json.dumps(text)}",
        f"the page says {text!r}",
    )


async def figure(browser: Browser, signal: str, label: str) -> str:
    """One figure of a signal's card, as a person reads it."""
    return str(
        await browser.js(
            f"[...document.querySelectorAll('[aria-labelledby=\"signal-{signal}\"] dt')]"
            f".find((dt) => dt.textContent === {json.dumps(label)})?.nextSibling.textContent"
        )
    )


# --------------------------------------------------------------------- real relays


async def test_from_nothing_to_healthy_to_outage_to_recovery(
    browser: Browser, sink: Sink, start_relay: StartRelay
) -> None:
    relay = await start_relay(
        RELAY_QUEUE_SIZE="100",
        RELAY_EXPORTER_HEADERS=f"authorization={SECRET}",
        OTEL_SERVICE_NAME="shop",
    )
    await browser.open(f"http://{relay.admin}/")
    await headline(browser, "Nothing received yet")
    assert relay.grpc in await browser.text("#detail")

    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 60))
        await headline(browser, "Collector up")
        assert await figure(browser, "traces", "received") == "60"
        assert await figure(browser, "traces", "exported") == "60"
        assert await browser.text("#losses") == "Nothing was removed, nothing was lost."

        await sink.stop()
        await send(channel, TRACES, numbered_request(60, 120))
        await headline(browser, "Collector down")
        await send(channel, TRACES, numbered_request(120, 360))
        await browser.until(
            "/queue_full.*200/s.test(document.querySelector('#losses').innerText)", "what was lost"
        )
        assert await figure(browser, "traces", "ring") == "100 % full"
        assert await figure(browser, "traces", "lost") == "200"
        assert "CONNECT_FAILED" in await browser.text("#errors")
        assert (await browser.js("document.title")).startswith("✕ Collector down")

        await sink.start()
        await headline(browser, "Collector up")
        assert "200 items of traces lost" in await browser.text("#detail")

    await browser.js("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    everything = await browser.text()
    assert "OTEL_SERVICE_NAME" in everything
    assert "shop" in everything
    assert SECRET not in await browser.js("document.documentElement.outerHTML")
    assert not browser.complaints
    asked = {url for url in browser.requests if not url.startswith(f"http://{relay.admin}/")}
    assert not asked, "the page asks for things elsewhere"


async def test_says_that_the_relay_went_away_and_when_it_is_back(
    browser: Browser, sink: Sink, relay: RelayProcess
) -> None:
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 7))
    await browser.open(f"http://{relay.admin}/")
    await headline(browser, "Collector up")
    relay.kill()
    await relay.exit_code()
    await headline(browser, "The relay does not answer")
    assert "Since" in await browser.text("#detail")
    assert await browser.js("document.body.hasAttribute('data-stale')")
    assert await figure(browser, "traces", "received") == "7", "the last known state is kept"

    back = {"RELAY_ADMIN_LISTEN": relay.admin}
    async with RelayProcess(f"http://{sink.grpc_endpoint}", back) as again:
        await headline(browser, "Nothing received yet")
        assert not await browser.js("document.body.hasAttribute('data-stale')")
        async with again.channel() as channel:
            await send(channel, TRACES, numbered_request(0, 3))
        await browser.until("document.body.innerText.includes('up')", "it shows the new relay")
        await headline(browser, "Collector up")
        assert await figure(browser, "traces", "received") == "3"


async def test_texts_from_outside_stay_texts(
    browser: Browser, sink: Sink, start_relay: StartRelay
) -> None:
    sink.behave(Behaviour(code="PERMISSION_DENIED", message=HOSTILE))
    relay = await start_relay(OTEL_SERVICE_NAME=HOSTILE.replace(",", ""))
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 1))
    await browser.open(f"http://{relay.admin}/")
    await browser.until(
        "document.querySelector('#errors')?.innerText.includes('onerror')", "the message is shown"
    )
    assert await browser.js("document.querySelectorAll('img, main script').length") == 0
    assert "taken" not in (await browser.js("document.title")).casefold()
    assert not browser.complaints


async def test_every_file_is_served_with_a_strict_policy(relay: RelayProcess) -> None:
    for path, asset in page.assets().items():
        async with relay.client.get(f"http://{relay.admin}{path}") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == f"{asset.content_type}; charset=utf-8"
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert await answer.text() == asset.text
    status, text = await relay.get("/history.json")
    assert status == 200
    assert json.loads(text)["samples"], "there is a sample from the start on"


# ------------------------------------------------------------------ crafted states

NOW = 1_800_000_000.0


def signal_status(second: float, *, idle: bool = False) -> dict[str, Any]:
    """A signal after ``second`` of 600: an outage from 200 to 320, and drops in its second half."""
    lost = 0 if idle else int(min(max(second - 260, 0), 60)) * 40
    received = 0 if idle else int(second * 40)
    down = 200 <= second < 320 and not idle
    waiting = int(min(second - 200, 51) * 40) if down else 12
    exported = 0 if idle else received - lost - waiting
    return {
        "received": received,
        "filtered": {},
        "dropped": {"queue_full": lost} if lost else {},
        "exported": exported,
        "attempts": {},
        "in_flight": 0,
        "refused": {"invalid": 3} if not idle else {},
        "queue": {
            "items": 0 if idle else waiting,
            "bytes": 0 if idle else waiting * 300,
            "capacity_items": 2048,
            "capacity_bytes": 16777216,
            "oldest_age_seconds": 1.5,
        },
        "collector": {
            "endpoint": "otel-collector:4317",
            "protocol": "grpc",
            "up": None if idle else not down,
            "last_success": None if idle else NOW - 600 + second - 2,
            "outage_seconds": second - 200 if down else 0.0,
        },
        "last_outage": {"ended_at": NOW - 280, "seconds": 120.0, "lost": lost}
        if second >= 320 and not idle
        else None,
        "errors": [
            {"at": NOW - 390 + n, "code": "UNAVAILABLE", "message": "upstream is down"}
            for n in range(5)
        ]
        if second >= 210 and not idle
        else [],
    }


def relay_status(second: float) -> dict[str, Any]:
    return {
        "version": "9.9.9",
        "ready": True,
        "started_at": NOW - 700,
        "now": NOW - 600 + second,
        "listening": {"grpc": ["127.0.0.1:4317", "[::1]:4317"], "admin": ["127.0.0.1:8888"]},
        "signals": {
            each.name: signal_status(second, idle=each.name != "traces") for each in SIGNALS
        },
        "configuration": [
            {"name": "RELAY_QUEUE_SIZE", "signal": "", "value": "2048", "source": "default"},
            {
                "name": "OTEL_EXCLUDED_URLS",
                "signal": "",
                "value": "/health," * 40,
                "source": "OTEL_EXCLUDED_URLS",
            },
        ],
    }


@asynccontextmanager
async def crafted(state: Mapping[str, object]) -> AsyncIterator[str]:
    """An admin listener that has watched ten minutes and shows ``state`` now; its URL."""
    registry = CollectorRegistry()
    admin = Admin(Listen("127.0.0.1", 0), registry, lambda: True, lambda: state)
    for second in range(0, int(state["now"] - NOW + 600), 5):  # type: ignore[operator]  # a number
        admin._history.add(relay_status(second))  # a past that nobody has to wait for
    try:
        (address,) = await admin.start()
        yield f"http://{address}/"
    finally:
        await admin.stop()


async def test_the_charts_show_ten_minutes_when_the_page_is_opened(browser: Browser) -> None:
    async with crafted(relay_status(600)) as url:
        await browser.open(url)
        await headline(browser, "Collector up")
        words = await browser.js(
            "[...document.querySelectorAll('svg[role=img] title')].map((t) => t.textContent)"
        )
        assert len(words) == 2
        assert "in 40 /s now" in words[0] or "in 40 now, 40 on average, 40 at most" in words[0]
        assert "collector down for 2 min 0 s of it" in words[0]
        assert "99.6 % at most" in words[1]
        lines = await browser.js(
            "[...document.querySelectorAll('.chart .line')].map((l) => l.getAttribute('d').length)"
        )
        assert len(lines) == 4, "in, out, lost; and the ring"
        assert min(lines) > 1000, "each has about 120 points"
        assert await browser.js("document.querySelectorAll('.chart .outage').length") == 2

        # The same as a table, with its heads.
        await browser.js("document.querySelector('.card details').open = true")
        await browser.until("document.querySelector('.card table')", "the table is there")
        heads = await browser.js(
            "[...document.querySelectorAll('.card thead th')].map((th) => th.textContent)"
        )
        assert heads == ["minute from", "in /s", "out /s", "lost", "ring, most", "collector"]
        rows = await browser.js(
            "[...document.querySelectorAll('.card tbody tr')]"
            ".map((tr) => tr.innerText.split('\\t'))"
        )
        assert 10 <= len(rows) <= 11
        assert [row[5] for row in rows].count("down") >= 2
        lost = sum(int(row[3].replace(",", "")) for row in rows)
        assert lost == 2400
        assert "(5 times in a row)" in await browser.text("#errors")
        assert "not OTLP" in await browser.text("#losses")


async def test_only_a_change_of_state_is_announced(browser: Browser) -> None:
    state = relay_status(250)
    async with crafted(state) as url:
        await browser.open(url)
        await headline(browser, "Collector down")
        await browser.js(
            "window.said = []; new MutationObserver((all) => window.said.push(all.length))"
            ".observe(document.querySelector('[role=status]'),"
            " { childList: true, characterData: true, subtree: true })"
        )
        detail = await browser.text("#detail")
        state["now"] += 7
        state["signals"]["traces"]["collector"]["outage_seconds"] += 7
        await browser.until(
            f"document.querySelector('#detail').innerText !== {json.dumps(detail)}", "time goes on"
        )
        assert await browser.js("window.said.length") == 0
        live = "document.querySelectorAll('[aria-live], [role=status]').length"
        assert await browser.js(live) == 1


@pytest.mark.parametrize("width", [320, 390, 768])
async def test_fits_a_phone(browser: Browser, width: int) -> None:
    async with crafted(relay_status(250)) as url:
        await browser.look(width=width, height=800)
        await browser.open(url)
        await headline(browser, "Collector down")
        await browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        await browser.until("document.querySelector('#configuration table')", "it is all there")
        assert await browser.js("document.documentElement.scrollWidth") <= width
        # Messages, meanings and values are read without scrolling sideways.
        hidden = await browser.js(
            "[...document.querySelectorAll('.stacks')].map("
            "({ parentElement: frame }) => frame.scrollWidth - frame.clientWidth)"
        )
        assert hidden == [0, 0, 0], "losses, errors, settings"


@pytest.mark.parametrize(
    ("dark", "width"),
    [(False, 1200), (True, 1200), (False, 390)],
    ids=["light", "dark", "phone"],
)
async def test_accessibility(browser: Browser, axe: str, dark: bool, width: int) -> None:
    """All of axe-core's rules for WCAG 2.2 A and AA and its best practices; contrast is one."""
    state = relay_status(600)
    async with crafted(state) as url:
        await browser.look(width=width, dark=dark)
        await browser.open(url)
        await headline(browser, "Collector up")
        await browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        await browser.until("document.querySelector('.card table')", "the table is there")
        await accessible(browser, axe)
        state["signals"]["traces"] = signal_status(290)
        await headline(browser, "Collector down")
        await accessible(browser, axe)
    await headline(browser, "The relay does not answer")
    await accessible(browser, axe)


async def accessible(browser: Browser, axe: str) -> None:
    await browser.js(f"void {json.dumps(axe)}; (0, eval)({json.dumps(axe)}); 0")
    found = await browser.js("axe.run(document).then((result) => result)")
    assert len(found["passes"]) > 20, "axe has looked at something"
    faults = [
        f"{fault['id']}: {node['target']}: {node['failureSummary']}"
        for fault in found["violations"]
        for node in fault["nodes"]
    ]
    assert not faults, "\n".join(faults)
