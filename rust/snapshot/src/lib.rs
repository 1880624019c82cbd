//! Snapshot file formats: v8, v9, sparse RAM, atomic publish.
