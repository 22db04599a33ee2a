"""Answers given again: keys, entries and the tiers that keep them."""
