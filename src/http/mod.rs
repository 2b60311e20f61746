//! One message model and its wire format; knows nothing of routes or services.

pub mod h1;
