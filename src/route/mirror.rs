//! Which requests of a route are copied to other services, and by which host those know copies. Pure: the random number is an
//! argument. Called by `proxy::mirror`.

use super::percent::Percent;

/// A service that gets copies of a route's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirror {
    /// Index into `Snapshot::services`.
    pub service: u32,
    /// How many of them.
    pub percent: Percent,
}

impl Mirror {
    /// Services that one route copies to.
    pub const SERVICES_MAX: usize = 8;
}

/// The host of a copy: Envoy's mark, which services know. An address in brackets stays, as it is no name.
pub fn marked(host: &[u8]) -> Vec<u8> {
    const MARK: &[u8] = b"-shadow";
    if host.is_empty() || host.starts_with(b"[") {
        return host.to_vec();
    }
    let end = memchr::memchr(b':', host).unwrap_or(host.len());
    [&host[..end], MARK, &host[end..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_told_by_its_host() {
        for (host, want) in [
            ("shop.example", "shop.example-shadow"),
            ("shop.example:8080", "shop.example-shadow:8080"),
            ("10.0.0.1:80", "10.0.0.1-shadow:80"),
            ("[::1]:80", "[::1]:80"),
            ("", ""),
        ] {
            assert_eq!(marked(host.as_bytes()), want.as_bytes());
        }
    }
}
