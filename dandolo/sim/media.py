"""Endpoints whose payload is not chat: embeddings, images (PNG), audio (WAV), multipart uploads."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

from dandolo.sim.answer import (
    Answer,
    Asked,
    Refused,
    check_model,
    count,
    encode,
    model_of,
    read_json,
    words_in,
)
from dandolo.sim.catalog import provider_headers

DIMENSIONS = 8
DIMENSIONS_MAX = 8_192
INPUTS_MAX = 2_048
"""OpenAI's own bound on the inputs of one embeddings request."""

WAV_SAMPLES = 800
WAV_RATE_HZ = 8_000


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """A deterministic unit vector of a text: equal texts, equal vectors."""
    seed = text.encode()
    raw = b"".join(hashlib.sha256(seed + bytes([i % 256, i // 256])).digest() for i in range(dimensions // 16 + 1))
    numbers = [value / 32_768 for value in struct.unpack(f"<{dimensions}h", raw[: 2 * dimensions])]
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return [number / length for number in numbers]


def embeddings(asked: Asked) -> Answer:
    body = read_json(asked)
    model = model_of(asked, body)
    given = body.get("input")
    tokens_given = isinstance(given, list) and bool(given) and not isinstance(given[0], str)
    if tokens_given and asked.dialect == "venice":
        raise Refused(400, "input: token arrays are not supported", "invalid_input")
    inputs: list[Any]
    if isinstance(given, list) and given and not isinstance(given[0], int):
        inputs = given
    elif isinstance(given, (str, list)) and given:
        inputs = [given]
    else:
        raise Refused(400, "'input' must be a string or a non-empty array", "invalid_input")
    if len(inputs) > INPUTS_MAX:
        raise Refused(400, f"at most {INPUTS_MAX} inputs", "invalid_input")
    size = body.get("dimensions")
    if size is None:
        size = DIMENSIONS
    if not isinstance(size, int) or not 1 <= size <= DIMENSIONS_MAX:
        raise Refused(400, f"dimensions must be between 1 and {DIMENSIONS_MAX}", "invalid_dimensions")
    data = []
    for index, item in enumerate(inputs):
        numbers: list[float] | str = vector(item if isinstance(item, str) else repr(item), size)
        if body.get("encoding_format") == "base64":
            numbers = base64.b64encode(struct.pack(f"<{size}f", *numbers)).decode()
        data.append({"object": "embedding", "index": index, "embedding": numbers})
    tokens = sum(count(item) if isinstance(item, str) else len(item) for item in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": data, "model": model, "usage": usage}
    return Answer(body=encode(answer), headers=provider_headers(asked, model))


def png(red: int, green: int, blue: int) -> bytes:
    """A real PNG of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixel = zlib.compress(bytes([0, red, green, blue]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


def wav() -> bytes:
    """A tenth of a second of a quiet square wave: a real WAV file, 8 kHz, 8 bit, mono."""
    samples = bytes(120 if i // 10 % 2 else 136 for i in range(WAV_SAMPLES))
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, WAV_RATE_HZ, WAV_RATE_HZ, 1, 8)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(head) + len(data)) + b"WAVE" + head + data


def images(asked: Asked) -> Answer:
    body = read_json(asked)
    if not isinstance(body.get("prompt"), str):
        raise Refused(400, "'prompt' is required", "missing_prompt")
    return _images(asked, body.get("n"), body.get("response_format"))


def images_upload(asked: Asked) -> Answer:
    form = multipart(asked)
    if "image" not in form and "image[]" not in form:
        raise Refused(400, "'image' is required", "missing_image")
    n = form.get("n", b"1").decode("utf-8", "replace")
    return _images(asked, int(n) if n.isdigit() else None, None)


def _images(asked: Asked, n: Any, form: Any) -> Answer:
    number = n if isinstance(n, int) and 1 <= n <= 10 else 1
    data = []
    for index in range(number):
        picture = base64.b64encode(png(asked.sequence % 256, index, 200)).decode()
        data.append({"url": f"data:image/png;base64,{picture}"} if form == "url" else {"b64_json": picture})
    return Answer(body=encode({"created": asked.created(), "data": data}), pieces=number)


def speech(asked: Asked) -> Answer:
    body = read_json(asked)
    model_of(asked, body)
    if not isinstance(body.get("input"), str):
        raise Refused(400, "'input' is required", "missing_input")
    return Answer(body=wav(), content_type="audio/wav")


def transcriptions(asked: Asked) -> Answer:
    form = multipart(asked)
    if "file" not in form:
        raise Refused(400, "'file' is required", "missing_file")
    model = form.get("model", b"").decode("utf-8", "replace")
    check_model(asked, model)
    text = (
        f"{asked.provider}: heard {len(form['file'])} bytes model={model} seq={asked.sequence} "
        f"sha256={asked.body_sha256}"
    )
    if form.get("response_format") == b"text":
        return Answer(body=text.encode(), content_type="text/plain; charset=utf-8")
    usage = {"type": "duration", "seconds": 1}
    return Answer(body=encode({"text": text, "usage": usage}), pieces=count(words_in(text)))


_NAME = re.compile(rb'content-disposition:[^\r\n]*[; ]name="([^"]*)"', re.IGNORECASE)


def multipart(asked: Asked) -> dict[str, bytes]:
    """The parts of a multipart/form-data body by name (the last of a name wins); raises `Refused` 400."""
    kind = asked.headers.get("content-type", "")
    found = re.search(r'boundary="?([^";]+)', kind)
    if not kind.lower().startswith("multipart/form-data") or not found:
        raise Refused(400, f"expected multipart/form-data with a boundary, got {kind!r}", "invalid_content_type")
    delimiter = b"\r\n--" + found[1].strip().encode()
    parts: dict[str, bytes] = {}
    for part in (b"\r\n" + asked.body).split(delimiter)[1:]:
        if part.startswith(b"--"):
            return parts
        head, blank, content = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not blank or not name:
            break
        parts[name[1].decode("utf-8", "replace")] = content
    raise Refused(400, "the multipart body has no closing boundary or a part without a name", "invalid_multipart")


HANDLERS: dict[str, Callable[[Asked], Answer]] = {
    "embeddings": embeddings,
    "images/generations": images,
    "images/edits": images_upload,
    "images/variations": images_upload,
    "audio/speech": speech,
    "audio/transcriptions": transcriptions,
    "audio/translations": transcriptions,
}
