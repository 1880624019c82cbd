"""The OCI formats and registries, for images and for whatever else is kept in them."""
