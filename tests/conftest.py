"""What all tests share."""

import signal

from tests.hosts.fixtures import c_program, host, hosts

__all__ = ["c_program", "host", "hosts"]

# A shell without job control has its background jobs ignore these two, and so would every process that a test starts.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)
