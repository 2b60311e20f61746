//! The one ordinary thread: sources, compile, publish, admin, export. May block, lock and allocate; never on the path.

pub mod doctor;
pub mod machine;
