"""Containers turn bytes into values and tensor references; they know nothing of file names."""
