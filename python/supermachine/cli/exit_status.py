"""Exit statuses of ``supermachine`` that are not a command's."""

#: supermachine's own failures, and commands that cannot be executed or found, as docker's.
OWN_FAILURE = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127
#: Commands that were killed after the time that they were given, as timeout(1) has it.
TIMED_OUT = 124
