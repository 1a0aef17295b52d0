"""Changing checkpoints: plans are carried out through a journal, so that each can be taken back."""
