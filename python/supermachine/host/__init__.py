"""What this host offers and where this package keeps what it brought: engines, bundled files, doctor."""
