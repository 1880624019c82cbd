"""What a virtual machine is told: values as people write them, checked."""
