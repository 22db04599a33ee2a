"""The life of a request: admission, exchange, answers."""
