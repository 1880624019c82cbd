"""What one does in a running guest: processes, paths, copies."""
