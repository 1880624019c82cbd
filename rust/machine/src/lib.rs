//! A virtual machine: memory, devices, vCPUs and boot.
