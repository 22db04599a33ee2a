"""What thinks about providers off the request path: probes first, later prediction, alerts and tuning."""
