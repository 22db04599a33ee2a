"""The cache, measured by itself: `python -m bench.cache.normal` and its neighbours."""
