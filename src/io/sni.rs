//! Which name a caller asks for by SNI.
//!
//! Rustls tells it to nobody but the one who picks the certificate ([`Noted`]), within the call that takes in the caller's
//! first flight. [`super::tls`] runs that call without a wait and takes the name right behind it, so that what is kept
//! per thread in between is never another connection's.

use std::cell::Cell;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

thread_local! {
    static ASKED: Cell<Option<Box<str>>> = const { Cell::new(None) };
}

/// Picks certificates as another does, and notes for which name.
#[derive(Debug)]
pub struct Noted(pub Arc<dyn ResolvesServerCert>);

impl ResolvesServerCert for Noted {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ASKED.set(hello.server_name().map(Into::into));
        self.0.resolve(hello)
    }
}

/// The name noted last, once.
pub(super) fn take() -> Option<Box<str>> {
    ASKED.take()
}
