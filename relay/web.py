"""The low level of aiohttp's HTTP server, without its application layer.

``aiohttp.web`` as a whole brings routing, static files, WebSockets and a command line along: over
1 MiB of code that neither the OTLP/HTTP receiver nor the admin listener uses.
"""

from __future__ import annotations

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from aiohttp.web_server import Server

__all__ = ["BaseRequest", "RequestHandler", "Response", "Server", "StreamResponse"]
