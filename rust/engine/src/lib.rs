//! One trait with the shape of Hypervisor.framework, and its providers.
