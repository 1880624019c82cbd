"""Measurements: how fast the software CPU and the product are, and how they compare with QEMU's TCG.

`make bench` runs them; README.md beside this file says what is measured and how.
"""
