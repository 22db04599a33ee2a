"""Synchronous decisions about where a call goes; time is always an argument."""
