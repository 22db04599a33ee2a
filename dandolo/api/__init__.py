"""The dialects of clients and providers, as pure functions over bytes."""
