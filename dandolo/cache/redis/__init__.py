"""The second tier: a Redis or Valkey server or cluster, spoken to by our own pipelined client.

`connection` is one connection (replies matched in order, deadlines, bounds), `link` one server (login, tracking,
breaker, reconnecting), `cluster` several by slot, `tier` what the cache asks. Bytes are parsed by `wire.resp`.
"""
