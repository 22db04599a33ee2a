"""Answers that are given again: what they are found by, how long they live, what they are stored as."""
