"""Bytes to meaning and back, without I/O: HTTP/1.1 on either side, SSE, chunked framing, PROXY protocol."""
