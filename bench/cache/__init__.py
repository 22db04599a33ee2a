"""Benches of the cache: hit rates, and what its parts cost."""
