//! Directories and files of the host that the guest may mount: opened before the process is confined, and served to the
//! guest by the machine's file device.

use supermachine_machine::Server;
use supermachine_proto::worker::Share;

use crate::confine::Beneath;
use crate::session::Ended;

/// What a worker has open for its shares.
pub struct Shares {
    #[cfg(target_os = "linux")]
    session: supermachine_fs::Session,
}

#[cfg(target_os = "linux")]
mod system {
    use std::os::fd::AsFd;

    use supermachine_fs::{Cache, Session, Share as Open};
    use supermachine_proto::worker::ShareCache;
    use supermachine_support::entropy;
    use vm_memory::VolatileSlice;

    use super::*;

    /// Descriptors that the server may have of the worker's.
    const DESCRIPTORS: u64 = 4096;

    impl Shares {
        pub fn open(shares: &[Share]) -> Result<Self, Ended> {
            let open = |share: &Share| {
                let cache = match share.cache {
                    ShareCache::Auto => Cache::Auto,
                    ShareCache::None => Cache::None,
                    ShareCache::Always => Cache::Always,
                };
                Open::open(&share.path, share.read_only, cache)
                    .map_err(|e| Ended::bad(format!("{} cannot be shared: {e}", share.path.display())))
            };
            let shares = shares.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            let mut first = [0; 8];
            entropy(&mut first).map_err(|e| Ended::bad(e.to_string()))?;
            let session = Session::new(shares, DESCRIPTORS, u64::from_le_bytes(first));
            Ok(Self { session: session.map_err(|e| Ended::bad(e.to_string()))? })
        }

        /// What the process needs to reach of the file system when it is confined.
        pub fn reached(&self) -> Vec<Beneath<'_>> {
            let shares = self.session.shares().iter();
            let reached = shares.map(|share| Beneath {
                top: share.descriptor().as_fd(),
                directory: share.is_directory(),
                read_only: share.is_read_only(),
            });
            reached.collect()
        }

        pub fn server(self) -> Option<Box<dyn Server>> {
            Some(Box::new(self))
        }
    }

    impl Server for Shares {
        fn serve(&mut self, request: &[VolatileSlice<'_>], answer: &[VolatileSlice<'_>]) -> usize {
            self.session.serve(request, answer)
        }

        fn reset(&mut self) {
            self.session.clear();
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Shares {
    /// There is a file server for Linux hosts alone.
    pub fn open(shares: &[Share]) -> Result<Self, Ended> {
        match shares {
            [] => Ok(Self {}),
            [share, ..] => {
                let path = share.path.display();
                Err(Ended::bad(format!(
                    "{path} cannot be shared: that needs a Linux host; copy the files in instead"
                )))
            }
        }
    }

    pub fn reached(&self) -> Vec<Beneath<'_>> {
        Vec::new()
    }

    pub fn server(self) -> Option<Box<dyn Server>> {
        None
    }
}
