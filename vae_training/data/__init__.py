"""Frames on disk: reading, sampling, metadata, writing, filtering and statistics."""
