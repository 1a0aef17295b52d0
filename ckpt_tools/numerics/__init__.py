"""Streaming over bytes: one pass that feeds checksums, digests and statistics at once (numpy, isal, blake3)."""
