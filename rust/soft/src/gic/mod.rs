//! The GICv3: distributor, redistributors and CPU interface.
