"""Prepare Elasticsearch and Kibana for OpenTelemetry data; a one-shot job of the compose stack.

    python setup.py elasticsearch    # lifecycle policy, index templates, with security also users
    python setup.py kibana           # data views

Standard library only. Everything is put, not added, so that it may run any number of times. Waits
until the server answers and, for Elasticsearch, until it has installed its own OpenTelemetry
mappings, which the templates are made of.

Environment: ELASTICSEARCH_URL, KIBANA_URL, RETENTION (default 7d), REPLICAS (default 0),
SETUP_TIMEOUT (seconds to wait, default 180); with security ELASTIC_PASSWORD_FILE,
KIBANA_PASSWORD_FILE, COLLECTOR_PASSWORD_FILE, CA_FILE.
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
SIGNALS: Final = ("traces", "metrics", "logs")
PAUSE: Final = 1.0
# Busy, starting or in the middle of an election; everything else is an answer.
LATER: Final = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class SetupError(Exception):
    """What stood in the way, for the log of the job."""


def secret(name: str) -> str:
    """The content of the file that the variable names; empty when it names none."""
    path = os.environ.get(name, "")
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SetupError(f"{name}: cannot read {path}: {error.strerror}") from None


class Server:
    """One HTTP API, asked until it answers or the time is up."""

    def __init__(self, url: str, deadline: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise SetupError(f"not an http:// or https:// address: {url!r}")
        self.url = url.rstrip("/")
        self.deadline = deadline
        self.headers = {"Content-Type": "application/json", "kbn-xsrf": "setup"}
        if password := secret("ELASTIC_PASSWORD_FILE"):
            credentials = base64.b64encode(f"elastic:{password}".encode()).decode()
            self.headers["Authorization"] = f"Basic {credentials}"
        ca = os.environ.get("CA_FILE") or None
        self.tls = ssl.create_default_context(cafile=ca) if url.startswith("https://") else None

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Status and body of one request.

        Raises:
            SetupError: no answer in time.
        """
        data = None if body is None else json.dumps(body).encode()
        said = ""
        while True:
            request = urllib.request.Request(  # noqa: S310 - the scheme was checked above
                self.url + path, data, self.headers, method=method
            )
            try:
                with urllib.request.urlopen(request, timeout=30, context=self.tls) as answer:  # noqa: S310
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                text = error.read().decode(errors="replace")
                if error.code not in LATER:
                    return error.code, text
                reason = f"HTTP {error.code} {text[:200]}"
            except OSError as error:
                reason = str(getattr(error, "reason", error))
            if time.monotonic() > self.deadline:
                raise SetupError(f"{method} {self.url}{path}: no success in time; last: {reason}")
            if reason != said:
                print(f"waiting for {self.url}: {reason}")
                said = reason
            time.sleep(PAUSE)

    def do(self, what: str, method: str, path: str, body: Any = None) -> None:
        """One request that must succeed."""
        status, text = self.call(method, path, body)
        if status >= HTTPStatus.BAD_REQUEST:
            raise SetupError(f"{what}: {method} {path} answered {status}: {text[:1000]}")
        print(f"done: {what}")

    def wait_for(self, what: str, path: str) -> None:
        """Ask until it exists."""
        while (status := self.call("GET", path)[0]) == HTTPStatus.NOT_FOUND:
            if time.monotonic() > self.deadline:
                raise SetupError(f"{what} did not appear in time ({path})")
            time.sleep(PAUSE)
        if status >= HTTPStatus.BAD_REQUEST:
            raise SetupError(f"{what}: GET {path} answered {status}")


def read(name: str) -> Any:
    """One of the JSON files beside this script."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def users(server: Server) -> None:
    """Kibana's password, and a user for the collector that may write its streams and no more."""
    if kibana := secret("KIBANA_PASSWORD_FILE"):
        server.do(
            "password of kibana_system",
            "POST",
            "/_security/user/kibana_system/_password",
            {"password": kibana},
        )
    if collector := secret("COLLECTOR_PASSWORD_FILE"):
        names = [f"otel-{signal}" for signal in SIGNALS]
        privileges = ["auto_configure", "create_doc"]
        server.do(
            "role otel_collector",
            "PUT",
            "/_security/role/otel_collector",
            {"cluster": ["monitor"], "indices": [{"names": names, "privileges": privileges}]},
        )
        server.do(
            "user otel_collector",
            "PUT",
            "/_security/user/otel_collector",
            {"password": collector, "roles": ["otel_collector"]},
        )


def elasticsearch(server: Server) -> None:
    """Lifecycle policy, templates, users."""
    retention = os.environ.get("RETENTION") or "7d"
    if not re.fullmatch(r"[1-9]\d*[dhm]", retention):
        raise SetupError(f"RETENTION: {retention!r} is no time such as 7d, 12h or 30m")
    replicas = os.environ.get("REPLICAS") or "0"
    if not replicas.isdecimal():
        raise SetupError(f"REPLICAS: {replicas!r} is no number")
    users(server)
    policy = read("lifecycle.json")
    policy["policy"]["phases"]["delete"]["min_age"] = retention
    server.do(f"lifecycle policy otel, {retention}", "PUT", "/_ilm/policy/otel", policy)
    for signal in SIGNALS:
        template = read(f"template-{signal}.json")
        for component in template["composed_of"]:
            server.wait_for(f"component template {component}", f"/_component_template/{component}")
        template["template"]["settings"]["index"]["number_of_replicas"] = int(replicas)
        server.do(
            f"index template otel-{signal}", "PUT", f"/_index_template/otel-{signal}", template
        )


def kibana(server: Server) -> None:
    """Data views."""
    for view in read("data-views.json"):
        server.do(
            f"data view {view['name']}",
            "POST",
            "/api/data_views/data_view",
            {"data_view": view, "override": True},
        )


def main(arguments: list[str]) -> int:
    """Do one of the two jobs; 0, or 1 with a message."""
    jobs = {
        "elasticsearch": (elasticsearch, "ELASTICSEARCH_URL", "http://elasticsearch:9200"),
        "kibana": (kibana, "KIBANA_URL", "http://kibana:5601"),
    }
    if len(arguments) != 1 or arguments[0] not in jobs:
        print(f"usage: setup.py {'|'.join(jobs)}", file=sys.stderr)
        return 2
    job, variable, default = jobs[arguments[0]]
    try:
        deadline = time.monotonic() + float(os.environ.get("SETUP_TIMEOUT") or 180)
        job(Server(os.environ.get(variable) or default, deadline))
    except (SetupError, ssl.SSLError) as error:
        print(f"setup of {arguments[0]} failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
