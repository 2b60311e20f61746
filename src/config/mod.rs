//! TOML to checked values. Named by `control` and the binaries only.
