//! The extension module `supermachine._core`: what the Python package cannot do fast or safely by itself.
//!
//! Every call that may wait gives up the GIL and looks for Python signals at least every
//! [`sys::SIGNAL_INTERVAL_MS`] milliseconds, and ends when the VM does.

mod arrival;
mod callers;
mod connection;
mod datagrams;
mod descriptors;
mod errors;
mod exec;
mod files;
mod forward;
mod image;
mod monitor;
mod netd;
mod parts;
mod process;
mod publication;
mod pump;
mod remote;
mod secured;
mod shares;
mod signing;
mod snapshot;
mod state;
mod sys;
mod volumes;
#[cfg_attr(not(target_os = "linux"), path = "watch/elsewhere.rs")]
mod watch;
mod worker;

use pyo3::pymodule;

#[pymodule]
mod _core {
    use std::collections::HashMap;

    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::arrival::{AwaitedPages, arrival_message};
    #[pymodule_export]
    use crate::exec::Exec;
    #[pymodule_export]
    use crate::files::Files;
    #[pymodule_export]
    use crate::forward::Forward;
    #[pymodule_export]
    use crate::image::{convert_image, decompress_archive, sha256};
    #[pymodule_export]
    use crate::netd::{check_network_rule, check_secret_host};
    #[pymodule_export]
    use crate::parts::{Kernel, Unpacker, pack_part, root_pages};
    #[pymodule_export]
    use crate::publication::Publication;
    #[pymodule_export]
    use crate::remote::{Remote, Watched};
    #[pymodule_export]
    use crate::secured::{fleet_credentials, secured};
    #[pymodule_export]
    use crate::shares::{attach_shares, grow_file_system};
    #[pymodule_export]
    use crate::signing::{public_key, sign, verify_signature};
    #[pymodule_export]
    use crate::snapshot::{
        device_names_v8, export_snapshot, flatten_snapshots, import_snapshot, read_snapshot, verify_snapshot,
        write_snapshot_v8, write_snapshot_v9,
    };
    #[pymodule_export]
    use crate::volumes::{
        answer_of_volume, grow_volume, lock_volume, look_at_volume, make_volume, wish_of_volume,
    };
    #[pymodule_export]
    use crate::watch::{Watch, watch_share};
    #[pymodule_export]
    use crate::worker::Worker;

    /// Version of the messages this build speaks with workers and agents.
    #[pymodule_export]
    const PROTOCOL_VERSION: u32 = supermachine_proto::VERSION;

    /// Where a guest has the certificates that it trusts, when some is its machine's own.
    #[pymodule_export]
    const TRUST_BUNDLE: &str = supermachine_proto::agent::TRUST_BUNDLE;

    /// Bytes of a secret's value at least and at most.
    #[pymodule_export]
    const MIN_SECRET: usize = supermachine_netd::secrets::LEAST_BYTES;
    #[pymodule_export]
    const MAX_SECRET: usize = supermachine_netd::secrets::MOST_BYTES;

    /// Bytes of RAM that a guest has at least and at most.
    #[pymodule_export]
    const MIN_MEMORY: u64 = supermachine_proto::limits::MIN_MEMORY;
    #[pymodule_export]
    const MAX_MEMORY: u64 = supermachine_proto::limits::MAX_MEMORY;
    /// RAM comes in multiples of this.
    #[pymodule_export]
    const MEMORY_STEP: u64 = supermachine_proto::limits::MEMORY_STEP;

    /// Ranges of a working set at most.
    #[pymodule_export]
    const MAX_WORKING_SET: usize = supermachine_proto::limits::MAX_WORKING_SET;

    /// Version of this build.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// Opens /dev/null on those of the descriptors 0, 1 and 2 that are closed.
    #[pyfunction]
    fn reserve_standard_streams() -> PyResult<()> {
        Ok(crate::descriptors::reserve_standard()?)
    }

    /// vCPUs that a guest has at most, by its architecture; and what every process that loads this needs.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::descriptors::watch_forks();
        crate::descriptors::reserve_standard()?;
        module.add("MAX_VCPUS", HashMap::from(supermachine_proto::limits::MAX_VCPUS))
    }
}
