"""``supermachine run``: the fast way from a remembered start, and the full one."""
