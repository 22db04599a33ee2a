"""An LLM gateway of ordinary make: Starlette in front, aiohttp behind.

What a capable team writes in a day: parse the body, check the key, choose the provider, send the
request on, stream what streams.  No usage, limits, records, retries or cache: less than Dandolo
does, so the comparison is kind to it.  Runs under uvicorn with uvloop and httptools.

Environment: STUB_URL (base URL of the provider), PROVIDER_KEY, CLIENT_KEY.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PROVIDERS = {"bench-model": (os.environ["STUB_URL"], os.environ["PROVIDER_KEY"])}
CLIENT_KEYS = {os.environ["CLIENT_KEY"]}


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """One client session for the process, with an unbounded pool of kept-alive connections."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=75)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        app.state.session = session
        yield


def refusal(status: int, message: str) -> JSONResponse:
    """An error in OpenAI's form."""
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)


async def chat(request: Request) -> Response:
    """``POST /v1/chat/completions``."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or key not in CLIENT_KEYS:
        return refusal(401, "unknown key")
    try:
        body = await request.json()
    except ValueError:
        return refusal(400, "the body is not JSON")
    provider = PROVIDERS.get(body.get("model"))
    if provider is None:
        return refusal(404, "unknown model")
    base_url, provider_key = provider
    upstream = await request.app.state.session.post(
        f"{base_url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {provider_key}", "content-type": "application/json"},
    )
    if not body.get("stream"):
        async with upstream:
            content = await upstream.read()
        return Response(content, upstream.status, media_type=upstream.content_type)

    async def chunks() -> AsyncIterator[bytes]:
        async with upstream:
            async for chunk in upstream.content.iter_any():
                yield chunk

    return StreamingResponse(chunks(), upstream.status, media_type="text/event-stream")


app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])], lifespan=lifespan)
