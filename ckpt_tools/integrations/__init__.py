"""Hooks for training frameworks; each module needs its framework installed, and nothing else imports them."""
