"""What a guest is given of the host's disks."""
