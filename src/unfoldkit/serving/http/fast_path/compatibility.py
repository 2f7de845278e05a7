"""Check at start that uvicorn has the internals that a connection relies on; pyproject.toml bounds its version too."""

from __future__ import annotations

from typing import Any

METHODS = (
    *("connection_made", "connection_lost", "data_received", "eof_received", "pause_writing", "resume_writing"),
    "shutdown",
)
PROTOCOL_ATTRIBUTES = ("connections", "cycle", "headers", "pipeline", "timeout_keep_alive_task")
CYCLE_ATTRIBUTES = ("body", "disconnected", "more_body", "response_complete", "scope")
STATE_ATTRIBUTES = ("connections", "default_headers")


def find_incompatibility(config: Any) -> str:
    """Return what the installed uvicorn lacks; empty if a connection can wrap its protocol.

    Args:
        config: A ``uvicorn.Config``, which is loaded if it is not yet.
    """
    import uvicorn

    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
        from uvicorn.server import ServerState

        if not config.loaded:
            config.load()
        state = ServerState()
        protocol = HttpToolsProtocol(config, state, {})
    except (ImportError, AttributeError, TypeError) as error:
        return f"uvicorn {uvicorn.__version__}: {error}"
    stored = RequestResponseCycle.__init__.__code__.co_names
    missing = [
        *(f"HttpToolsProtocol.{name}" for name in (*METHODS, *PROTOCOL_ATTRIBUTES) if not hasattr(protocol, name)),
        *(f"RequestResponseCycle.{name}" for name in CYCLE_ATTRIBUTES if name not in stored),
        *(f"ServerState.{name}" for name in STATE_ATTRIBUTES if not hasattr(state, name)),
    ]
    return f"uvicorn {uvicorn.__version__} has no {', '.join(missing)}" if missing else ""
