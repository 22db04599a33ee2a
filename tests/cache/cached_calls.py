"""Judged calls for the cache's tests."""

import json
from typing import Any

from dandolo.api.call import Call, read
from dandolo.api.endpoints import ENDPOINTS


def call(path: str = "/v1/chat/completions", /, **fields: Any) -> Call:
    """A call as the gateway reads it; a chat with one question when nothing else is said."""
    body = {"model": "fast", **fields}
    if path in ("/v1/chat/completions", "/v1/messages"):
        body.setdefault("messages", [{"role": "user", "content": "Why is the sky blue?"}])
    return read(ENDPOINTS[path.encode()], json.dumps(body).encode(), b"application/json")


def asking(*texts: str, **fields: Any) -> Call:
    """A chat of user messages."""
    return call(messages=[{"role": "user", "content": text} for text in texts], **fields)
