"""The page of the admin listener: one file, self-contained, that asks for nothing but the snapshot.

Its script and its style stand in it and are allowed by their SHA-256 and by nothing else: whatever a name of a model
or a key might hold, nothing in it can run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from dandolo.control.route import HTML, Answer

_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def page(keyed: bool) -> Answer:
    """The page, read once. `keyed`: it asks for a key before it asks for anything else."""
    body = Path(__file__).with_name("page.html").read_bytes()
    if keyed:
        body = body.replace(b'<html lang="en">', b'<html lang="en" data-keyed>', 1)
    allowed = {kind: _source(content) for kind, content in _INLINE.findall(body)}
    policy = (
        b"default-src 'none'; script-src %b; style-src %b; img-src data:; connect-src 'self'; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ) % (allowed[b"script"], allowed[b"style"])
    return Answer(200, HTML, body, policy)


def _source(content: bytes) -> bytes:
    """CSP 3, hash-source of an inline element."""
    return b"'sha256-%b'" % base64.b64encode(hashlib.sha256(content).digest())
