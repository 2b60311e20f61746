//! The compiled table: host, then path, longest first.

use super::{HostMatch, PathMatch, Route};

/// Finds the route of a request. Cost does not grow with the number of routes.
#[derive(Debug, Default)]
pub struct Table {}

/// Collects routes and reports overlaps.
#[derive(Debug, Default)]
pub struct TableBuilder {}

/// Why a route cannot be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableError {
    /// Another route has the same host and path: the index (order of adding) of that other one.
    Overlap(usize),
}

impl TableBuilder {
    /// Adds a route for a host and a path.
    ///
    /// # Errors
    /// When an earlier route has exactly this host and path.
    pub fn add(&mut self, _host: HostMatch, _path: PathMatch, _route: Route) -> Result<(), TableError> {
        Ok(())
    }

    /// The table.
    pub fn build(self) -> Table {
        Table {}
    }
}

impl Table {
    /// The route for a host (without port, any case; `None` for a request without one) and a path (without query).
    pub fn find(&self, _host: Option<&[u8]>, _path: &[u8]) -> Option<&Route> {
        None
    }
}
