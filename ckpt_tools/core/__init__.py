"""Errors, progress, sources and listings: everything that touches the machine, and nothing that knows a format."""
