"""What the cache costs, tier by tier."""
