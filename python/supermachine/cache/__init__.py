"""The cache directory: publishing, locks, what is kept."""
