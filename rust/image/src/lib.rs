//! OCI layers to one read-only EROFS image, streamed.
