"""A guest's connections with the outside."""
