//! How paths travel: as bytes, for serde's own way refuses those that are not UTF-8.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::agent::Chunk;

fn path(bytes: Chunk) -> PathBuf {
    OsString::from_vec(bytes.0).into()
}

pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serde_bytes::serialize(path.as_os_str().as_bytes(), serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Chunk::deserialize(deserializer).map(path)
}

/// The same for several.
pub(crate) mod list {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        let chunk = |path: &PathBuf| Chunk(path.as_os_str().as_bytes().to_vec());
        paths.iter().map(chunk).collect::<Vec<_>>().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<Chunk>::deserialize(deserializer)?.into_iter().map(path).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Disk;

    #[test]
    fn a_path_that_is_not_utf_8_arrives_as_it_is() {
        let disk = Disk { path: path(Chunk(b"/cache/\xff\xfe/rootfs".to_vec())), read_only: true };
        let bytes = postcard::to_allocvec(&disk).unwrap();
        assert_eq!(postcard::from_bytes::<Disk>(&bytes).unwrap(), disk);
    }
}
