"""What all tests share."""

from tests.hosts.fixtures import c_program, host, hosts

__all__ = ["c_program", "host", "hosts"]
