"""The endpoints clients may call: one table that says how each is read, limited and asked for upstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dandolo.api.profiles.profile import Endpoint as Speech

Dialect = Literal["chat", "completions", "responses", "messages", "plain"]
"""How an answer is understood: where usage stands, what ends a stream, which form an error takes."""

Body = Literal["json", "multipart", "none"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint.

    `name`      for records and metrics
    `speech`    what a provider's profile must speak to be asked
    `path`      ours; the provider's is the same below its base URL, without our `/v1`
    `methods`   allowed methods; anything else is 405
    `dialect`   how answers are understood
    `body`      how requests are read
    `upload`    whether the larger body limit holds
    `needs`     required JSON fields with the first bytes their values may have, and what to call that
    `model`     whether the model's name is required
    """

    name: str
    speech: Speech
    path: str
    methods: frozenset[bytes] = frozenset((b"POST",))
    dialect: Dialect = "plain"
    body: Body = "json"
    upload: bool = False
    needs: tuple[tuple[str, bytes, str], ...] = ()
    model: bool = True

    @property
    def allow(self) -> str:
        """The value of an Allow header."""
        return ", ".join(sorted(method.decode() for method in self.methods))


_MESSAGES = (("messages", b"[", "an array of messages"),)
_GET = frozenset((b"GET", b"HEAD"))

_TABLE = (
    Endpoint("chat", "chat", "/v1/chat/completions", dialect="chat", needs=_MESSAGES),
    Endpoint("completions", "completions", "/v1/completions", dialect="completions"),
    Endpoint("embeddings", "embeddings", "/v1/embeddings", needs=(("input", b'"[', "a string or an array"),)),
    Endpoint(
        "moderations",
        "moderations",
        "/v1/moderations",
        needs=(("input", b'"[', "a string or an array"),),
        model=False,
    ),
    Endpoint("responses", "responses", "/v1/responses", dialect="responses"),
    Endpoint("messages", "messages", "/v1/messages", dialect="messages", needs=_MESSAGES),
    Endpoint("count_tokens", "count_tokens", "/v1/messages/count_tokens", dialect="messages", needs=_MESSAGES),
    Endpoint("images.generations", "images", "/v1/images/generations", upload=True, model=False),
    Endpoint("images.edits", "images", "/v1/images/edits", body="multipart", upload=True, model=False),
    Endpoint("images.variations", "images", "/v1/images/variations", body="multipart", upload=True, model=False),
    Endpoint("audio.speech", "audio", "/v1/audio/speech", upload=True),
    Endpoint("audio.transcriptions", "audio", "/v1/audio/transcriptions", body="multipart", upload=True),
    Endpoint("audio.translations", "audio", "/v1/audio/translations", body="multipart", upload=True),
    Endpoint("rerank", "rerank", "/v1/rerank"),
    *(
        Endpoint(f"image.{name}", "venice_image", f"/v1/image/{name}", upload=True, model=False)
        for name in ("generate", "upscale", "edit", "multi-edit", "background-remove")
    ),
    Endpoint("image.styles", "venice_image", "/v1/image/styles", methods=_GET, body="none", model=False),
)

MODELS = Endpoint("models", "models", "/v1/models", methods=_GET, body="none", model=False)
RESPONSE = Endpoint(
    "responses.item",
    "responses",
    "/v1/responses/",
    methods=frozenset((b"GET", b"HEAD", b"DELETE", b"POST")),
    dialect="responses",
    body="none",
    model=False,
)

ENDPOINTS: dict[bytes, Endpoint] = {endpoint.path.encode(): endpoint for endpoint in _TABLE}
"""By raw path, compared exactly."""
