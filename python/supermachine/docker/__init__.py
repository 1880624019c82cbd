"""Docker's API for the programs that speak it: one command's, served on a socket by this process and gone with it.

Each container is one virtual machine. Every container, volume and log belongs to a `Session`, which ends with the
process; there is no daemon.
"""
