"""compose/elastic/setup.py against a server that remembers what it was told."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.tools import COMPOSE

SIGNALS = ("traces", "metrics", "logs")


class Elastic(ThreadingHTTPServer):
    """Takes everything; ``answers`` has what to say to (method, path), first to last."""

    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any, str]] = []
        self.answers: dict[tuple[str, str], list[tuple[int, str]]] = {}
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def puts(self) -> dict[str, Any]:
        return {path: body for method, path, body, _ in self.requests if method != "GET"}


class Handler(BaseHTTPRequestHandler):
    server: Elastic

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        authorization = self.headers.get("Authorization", "")
        self.server.requests.append((self.command, self.path, body, authorization))
        planned = self.server.answers.get((self.command, self.path), [])
        status, text = planned.pop(0) if planned else (200, "{}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_PUT = do_POST = answer  # noqa: N815 - the names that the server calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Quiet."""


@pytest.fixture
def elastic() -> Iterator[Elastic]:
    with Elastic() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def setup(job: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(COMPOSE / "elastic" / "setup.py"), job],
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **env},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_elasticsearch(elastic: Elastic) -> None:
    done = setup("elasticsearch", ELASTICSEARCH_URL=elastic.url, RETENTION="3d", REPLICAS="1")
    assert done.returncode == 0, done.stderr
    put = elastic.puts()
    assert list(put) == ["/_ilm/policy/otel", *(f"/_index_template/otel-{s}" for s in SIGNALS)]
    phases = put["/_ilm/policy/otel"]["policy"]["phases"]
    assert phases["delete"] == {"min_age": "3d", "actions": {"delete": {}}}
    assert phases["hot"]["actions"]["rollover"]
    for signal in SIGNALS:
        template = put[f"/_index_template/otel-{signal}"]
        assert template["index_patterns"] == [f"otel-{signal}"]
        assert template["data_stream"] == {}
        assert f"{signal}-otel@mappings" in template["composed_of"]
        settings = template["template"]["settings"]["index"]
        assert settings["lifecycle"] == {"name": "otel"}
        assert settings["number_of_replicas"] == 1
    # Nobody is logged in, and no user is made, where security is off.
    assert not any(authorization for *_, authorization in elastic.requests)


def test_it_waits_for_the_server_and_for_its_templates(elastic: Elastic) -> None:
    path = "/_component_template/otel@mappings"
    elastic.answers = {
        ("PUT", "/_ilm/policy/otel"): [(503, "no master")],
        ("GET", path): [(404, "{}")],
    }
    done = setup("elasticsearch", ELASTICSEARCH_URL=elastic.url)
    assert done.returncode == 0, done.stderr
    assert "HTTP 503 no master" in done.stdout
    asked = [(method, where) for method, where, *_ in elastic.requests]
    assert asked.count(("PUT", "/_ilm/policy/otel")) == 2
    # A template that refers to what is not there yet would be refused.
    assert asked.index(("PUT", "/_index_template/otel-traces")) > asked.index(("GET", path)) + 1


def test_kibana(elastic: Elastic) -> None:
    done = setup("kibana", KIBANA_URL=elastic.url)
    assert done.returncode == 0, done.stderr
    bodies = [body for *_, body, _ in elastic.requests]
    assert [body["data_view"]["title"] for body in bodies] == [f"otel-{s}" for s in SIGNALS]
    assert all(body["override"] for body in bodies)
    assert {path for _, path, *_ in elastic.requests} == {"/api/data_views/data_view"}


def test_security(elastic: Elastic, tmp_path: Path) -> None:
    secrets = {"ELASTIC": "e1", "KIBANA": "k1", "COLLECTOR": "c1"}
    env = {}
    for name, value in secrets.items():
        (tmp_path / name).write_text(value + "\n")
        env[f"{name}_PASSWORD_FILE"] = str(tmp_path / name)
    done = setup("elasticsearch", ELASTICSEARCH_URL=elastic.url, **env)
    assert done.returncode == 0, done.stderr
    expected = "Basic " + base64.b64encode(b"elastic:e1").decode()
    assert {authorization for *_, authorization in elastic.requests} == {expected}
    put = elastic.puts()
    assert put["/_security/user/kibana_system/_password"] == {"password": "k1"}
    assert put["/_security/user/otel_collector"]["password"] == "c1"
    [indices] = put["/_security/role/otel_collector"]["indices"]
    assert indices["names"] == [f"otel-{signal}" for signal in SIGNALS]
    assert indices["privileges"] == ["auto_configure", "create_doc"]
    assert not set(secrets.values()) & set((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"RETENTION": "a week"}, "RETENTION: 'a week'"),
        ({"REPLICAS": "many"}, "REPLICAS: 'many'"),
        ({"ELASTIC_PASSWORD_FILE": "/nowhere/password"}, "cannot read /nowhere/password"),
        ({"ELASTICSEARCH_URL": "elasticsearch:9200"}, "not an http:// or https:// address"),
        ({"ELASTICSEARCH_URL": "http://127.0.0.1:1", "SETUP_TIMEOUT": "0"}, "refused"),
    ],
)
def test_faults_are_named(elastic: Elastic, env: dict[str, str], said: str) -> None:
    done = setup("elasticsearch", **{"ELASTICSEARCH_URL": elastic.url, **env})
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_refusal_is_named(elastic: Elastic) -> None:
    elastic.answers = {("PUT", "/_ilm/policy/otel"): [(400, "unknown action")]}
    done = setup("elasticsearch", ELASTICSEARCH_URL=elastic.url)
    assert done.returncode == 1
    assert "lifecycle policy" in done.stderr
    assert "unknown action" in done.stderr
