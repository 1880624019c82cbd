"""Snapshots in registries: pushed, found, trusted, pulled. ``docs/how-to/artifacts.md`` describes them.

Nothing here is on the way of a start that has what it needs.
"""
