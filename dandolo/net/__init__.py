"""Sockets: listeners, connections to providers, pools, relays."""
