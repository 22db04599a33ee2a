"""Gateways of ordinary make, to measure against."""
