"""The load bench: Dandolo beside a plain nginx and other gateways, CPU and delay per request and per chunk."""
