"""Plugins of other programs."""
