//! No text makes the configuration's reader panic, and whatever it accepts makes a snapshot that can be asked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringmesh::config::{self, Look};

fuzz_target!(|text: &str| {
    let environment = |name: &str| (name.len() % 2 == 0).then(|| format!("{name}:80"));
    let look = Look { colour: false, unicode: false };
    match config::parse("fuzz.toml", text, &environment) {
        Ok(loaded) => {
            assert_eq!(loaded.warnings.errors(), 0);
            let _ = loaded.warnings.render(look);
            let compiled = loaded.compiled;
            let _ = compiled.effective();
            let names = |name: &str, port: u16| {
                // Some names do not resolve, some do to the same address.
                let octet = u8::try_from(name.len() % 3).unwrap();
                (octet > 0)
                    .then(|| std::net::SocketAddr::from(([127, 0, 0, octet], port)))
                    .into_iter()
                    .collect()
            };
            let snapshot = compiled.snapshot(1, &names);
            assert_eq!(snapshot.by_name.len(), snapshot.services.len());
            for service in &snapshot.services {
                assert!(snapshot.service_named(&service.name).is_some());
            }
            for route in snapshot.routes.routes() {
                let mut services = route.action.services();
                assert!(services.all(|service| (service as usize) < snapshot.services.len()));
            }
            for host in [None, Some(&b"a"[..]), Some(b"shop.example"), Some(b"x.shop.example")] {
                let _ = snapshot.routes.find(host, b"/below/it");
            }
        }
        Err(report) => {
            assert!(report.errors() > 0);
            assert!(!report.render(look).is_empty());
        }
    }
});
