"""What all tests share."""

import os
import signal

import hypothesis

from tests.hosts.fixtures import c_program, host, hosts

__all__ = ["c_program", "host", "hosts"]

# Where it is set pytest draws the whole difference of two values, and of two files of half a megabyte that takes hours.
# tests/real.py keeps what it said.
os.environ.pop("CI", None)

# How long an example takes is the machine's business.
hypothesis.settings.register_profile("supermachine", deadline=None)
hypothesis.settings.load_profile("supermachine")

# A shell without job control has its background jobs ignore the first two, nohup the third; and so would every process
# that a test starts.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)
