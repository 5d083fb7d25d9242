"""otlp-relay: a small OTLP sidecar that never blocks the application and never lies about loss."""

__version__ = "0.1.0"
