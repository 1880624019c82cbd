"""Measurements on KVM, inside emulated hosts (tests/hosts): beside peers, and beside QEMU with the same kernel."""
