"""Wrappers for any environment: action chunks, instructions, captions."""
