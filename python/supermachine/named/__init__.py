"""Machines with names: each with a keeper process of its own, which serves the command line and programs.

`registry` has the directories, `keeper` is the process, `client` is what talks to it.
"""
