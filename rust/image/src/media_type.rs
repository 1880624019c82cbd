//! What media types of layers say.

use crate::{Compression, Error};

impl Compression {
    /// The compression that a layer's media type names (OCI image-spec layer.md, Docker image manifest v2 schema 2).
    ///
    /// # Errors
    /// [`Error::MediaType`] for encrypted layers, other suffixes and types that are no layers.
    pub fn from_media_type(media_type: &str) -> Result<Self, Error> {
        match media_type.split(';').next().unwrap_or_default().trim() {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Self::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Self::Zstd),
            _ => Err(Error::MediaType { media_type: media_type.chars().take(200).collect() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types() {
        let oci = "application/vnd.oci.image.layer.v1.tar";
        assert_eq!(Compression::from_media_type(oci).unwrap(), Compression::None);
        assert_eq!(Compression::from_media_type(&format!("{oci}+gzip")).unwrap(), Compression::Gzip);
        assert_eq!(Compression::from_media_type(&format!("{oci}+zstd")).unwrap(), Compression::Zstd);
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        assert_eq!(Compression::from_media_type(docker).unwrap(), Compression::Gzip);
        for bad in ["", "text/plain", &format!("{oci}+gzip+encrypted"), &format!("{oci}+bzip2")] {
            assert_eq!(Compression::from_media_type(bad).unwrap_err().kind(), "media_type", "{bad}");
        }
    }
}
