//! What the demo shows of identity and secrecy, and what it demands of them: who calls as whom, how often certificates were
//! renewed, what could be read between the sidecars. Pure; numbers to lines and faults.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::Trouble;
use super::record::Found;
use super::stranger::Strangers;
use super::tap::Seen;
use super::terminal::{Line, Style};
use Style::{Bad, Bold, Dim, Good, Plain};

/// Of all identities of the demo.
pub(super) const TRUST_DOMAIN: &str = "demo.mesh";
/// How long a certificate of the demo lives: it is renewed after half of that.
pub(super) const LEAF_TTL: Duration = Duration::from_secs(6);
/// A renewal that takes longer is late. 3.3 s by the rules, and the machine may be busy.
const RENEWAL_MAX: Duration = Duration::from_secs(5);
/// Leaves told apart on a hop.
const LEAVES_MAX: usize = 10_000;

/// Who a workload's sidecar is.
pub(super) fn id(name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/{name}")
}

/// The way from one sidecar to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hop {
    /// The workload that calls.
    pub caller: &'static str,
    /// The workload that is called.
    pub called: &'static str,
}

/// The hops of one request, in its order.
pub(super) const HOPS: [Hop; 2] =
    [Hop { caller: "front", called: "orders" }, Hop { caller: "orders", called: "stock" }];

/// All of it.
#[derive(Default)]
pub(super) struct Trust {
    /// Whether plain text was asked for.
    pub without_tls: bool,
    /// What the sidecars present, from the outside in.
    pub leaves: Vec<Leaf>,
    /// Who called, in the answers of the called ones.
    pub callers: Callers,
    /// What the taps saw, in the order of [`HOPS`].
    pub taps: [Seen; HOPS.len()],
    /// What became of those who came without a certificate.
    pub strangers: Strangers,
}

/// What a sidecar presents.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaf {
    /// The workload that it stands beside.
    pub name: &'static str,
    /// Who it says it is.
    pub id: Option<String>,
    /// Certificates taken into use after the first.
    pub rotations: u64,
    /// Times that there should have been a new one and was not.
    pub failed: u64,
    /// Age of the present one, s.
    pub age: Option<u64>,
    /// What it has left, s.
    pub left: Option<u64>,
}

impl Leaf {
    /// Takes in a page of the sidecar, `/identity?format=json`, at this second of the Unix time.
    pub(super) fn learn(&mut self, page: &Value, now: u64) {
        self.id = page["id"].as_str().map(str::to_owned);
        // The first is no rotation.
        self.rotations = page["rotations"]["good"].as_u64().unwrap_or(0).saturating_sub(1);
        self.failed = page["rotations"]["failed"].as_u64().unwrap_or(0);
        self.left = page["chain"][0]["not_after_unix_seconds"].as_u64().map(|end| end.saturating_sub(now));
        self.age = self.left.map(|left| LEAF_TTL.as_secs().saturating_sub(left));
    }
}

/// Who called on each hop, as the called workload read it in `x-forwarded-client-cert`.
#[derive(Debug, Clone, Default)]
pub(super) struct Callers {
    /// The last one, in the order of [`HOPS`].
    by: [Option<String>; HOPS.len()],
    /// Fingerprints of the certificates that were presented for it.
    leaves: [BTreeSet<String>; HOPS.len()],
}

impl Callers {
    /// Takes in an answer of front.
    ///
    /// # Errors
    /// When a workload was not called by whom it should be.
    pub(super) fn learn(&mut self, answer: &Value) -> Result<(), String> {
        let mut said = answer;
        for (n, hop) in HOPS.iter().enumerate() {
            said = &said["calls"];
            let by = said["called_by"].as_str();
            self.by[n] = by.map(str::to_owned);
            let expected = id(hop.caller);
            if by != Some(&*expected) || said["service"].as_str() != Some(hop.called) {
                let by = by.unwrap_or("somebody without identity");
                return Err(format!("{} was called by {by}, not by {expected}", hop.called));
            }
            let leaves = &mut self.leaves[n];
            if let Some(leaf) = said["with_leaf"].as_str()
                && leaves.len() < LEAVES_MAX
                && !leaves.contains(leaf)
            {
                leaves.insert(leaf.to_owned());
            }
        }
        Ok(())
    }
}

impl Trust {
    /// Nothing seen yet of the sidecars of these, from the outside in.
    pub(super) fn new(names: impl Iterator<Item = &'static str>, without_tls: bool) -> Self {
        let leaves = names.map(|name| Leaf { name, ..Leaf::default() }).collect();
        Self { without_tls, leaves, ..Self::default() }
    }

    /// A row for every sidecar and for every hop.
    pub(super) fn table(&self) -> Vec<Line> {
        let mut lines = vec![Line::new().add(
            Dim,
            format!("{:<16}{:<27}{:>9}{:>9}{:>10}", "SIDECAR", "IS", "ROTATIONS", "LEAF AGE", "ENDS IN"),
        )];
        for leaf in &self.leaves {
            let seconds = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |s| format!("{s} s"));
            lines.push(
                Line::new()
                    .add(Bold, format!("{:<16}", leaf.name))
                    .add(Plain, format!("{:<27}{:>9}", leaf.id.as_deref().unwrap_or("-"), leaf.rotations))
                    .add(Plain, format!("{:>9}{:>10}", seconds(leaf.age), seconds(leaf.left))),
            );
        }
        let head = ["HOP", "CALLED BY", "LEAVES", "CONNS", "DROPPED", "TLS", "PLAIN"];
        let [hop, by, leaves, connections, dropped, tls, plain] = head;
        lines.push(
            Line::new().add(
                Dim,
                format!("{hop:<16}{by:<27}{leaves:>6}{connections:>6}{dropped:>8}{tls:>9}{plain:>8}"),
            ),
        );
        for (n, (hop, seen)) in HOPS.iter().zip(&self.taps).enumerate() {
            let by = self.callers.by[n].as_deref().unwrap_or("-");
            let (leaves, found) = (self.callers.leaves[n].len(), &seen.found);
            let bad = |is_bad| if is_bad { Bad } else { Plain };
            lines.push(
                Line::new()
                    .add(Bold, format!("{:<16}", format!("{} → {}", hop.caller, hop.called)))
                    .add(Plain, format!("{by:<27}{leaves:>6}{:>6}", seen.connections))
                    .add(bad(seen.dropped > 0), format!("{:>8}", seen.dropped))
                    .add(Plain, format!("{:>9}", bytes(found.bytes - found.plain_bytes)))
                    .add(bad(found.is_readable()), format!("{:>8}", bytes(found.plain_bytes))),
            );
        }
        lines
    }

    /// What came of it, each line under a label of ten columns.
    pub(super) fn summary(&self) -> Vec<Line> {
        let label = |text: &str| Line::new().add(Dim, format!("{text:<10}"));
        let verdict = |is_bad| if is_bad { Bad } else { Good };
        let mut lines = Vec::new();
        for (n, hop) in HOPS.iter().enumerate() {
            let by = self.callers.by[n].as_deref().unwrap_or("nobody with an identity");
            let line = label(if n == 0 { "identity" } else { "" });
            lines.push(line.add(Plain, format!("{:<6} was called by ", hop.called)).add(Bold, by));
        }
        let rotations: u64 = self.leaves.iter().map(|leaf| leaf.rotations).sum();
        let each: Vec<_> =
            self.leaves.iter().map(|leaf| format!("{} {}", leaf.name, leaf.rotations)).collect();
        let (connections, dropped) = self
            .taps
            .iter()
            .fold((0, 0), |(all, dropped), seen| (all + seen.connections, dropped + seen.dropped));
        lines.push(
            label("rotations")
                .add(Bold, rotations.to_string())
                .add(Plain, format!(" ({}), ", each.join(", ")))
                .add(verdict(dropped > 0), format!("{dropped} of {connections} connections dropped")),
        );
        let mut found = Found::default();
        for seen in &self.taps {
            found.add(&seen.found);
        }
        let plain = format!("{} in plain text", bytes(found.plain_bytes));
        lines.push(
            label("secrecy")
                .add(verdict(found.plain_bytes > 0), plain)
                .add(Plain, format!(" of {} between sidecars, ", bytes(found.bytes)))
                .add(verdict(found.markers > 0), format!("marker seen {} times", found.markers)),
        );
        let Strangers { refused, let_in, .. } = &self.strangers;
        lines.push(
            label("strangers")
                .add(Plain, format!("{} came to stock without a certificate, ", refused + let_in))
                .add(verdict(*let_in > 0), format!("{refused} refused")),
        );
        lines
    }

    /// What is not as it must be after so long.
    pub(super) fn faults(&self, elapsed: Duration) -> Vec<Trouble> {
        let report = match self.without_tls {
            true => "this is what --without-tls shows",
            false => "please report this, with the version of ringmesh and the summary above",
        };
        let mut faults = Vec::new();
        for (hop, seen) in HOPS.iter().zip(&self.taps) {
            let Hop { caller, called } = hop;
            if seen.found.is_readable() {
                faults.push(readable(*hop, &seen.found, report));
            }
            if seen.dropped > 0 {
                let what =
                    format!("connections from {caller} to {called} were dropped in use: {}", seen.dropped);
                faults.push(Trouble::new(what, report));
            }
        }
        let due = elapsed.as_secs() / RENEWAL_MAX.as_secs();
        for leaf in &self.leaves {
            let expected = id(leaf.name);
            if leaf.id.as_deref().is_some_and(|is| is != expected) {
                let is = leaf.id.as_deref().unwrap_or_default();
                faults.push(Trouble::new(
                    format!("the sidecar of {} is {is}, not {expected}", leaf.name),
                    report,
                ));
            }
            if leaf.rotations < due {
                let what = format!(
                    "the sidecar of {} renewed its certificate {} times in {} s, not at least {due} times; {} attempts failed",
                    leaf.name,
                    leaf.rotations,
                    elapsed.as_secs(),
                    leaf.failed
                );
                faults.push(Trouble::new(what, "is the machine very busy? If not, please report this"));
            }
        }
        if self.strangers.let_in > 0 {
            let what = format!("stock answered {} callers without a certificate", self.strangers.let_in);
            faults.push(Trouble::new(what, report));
        }
        faults
    }
}

fn readable(hop: Hop, found: &Found, help: &'static str) -> Trouble {
    let Hop { caller, called } = hop;
    let mut what = format!("plain text between the sidecars of {caller} and {called}: ");
    match &found.first {
        Some(first) => what += &format!("{} bytes, beginning with \"{first}\"", found.plain_bytes),
        None => what += "in the midst of TLS records",
    }
    if found.markers > 0 {
        what += &format!("; the marker of the requests was read {} times", found.markers);
    }
    Trouble::new(what, help)
}

/// In three digits and a unit.
fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{:.0} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(orders_by: &str, stock_by: &str) -> Value {
        json!({ "service": "front", "called_by": null, "calls": {
            "service": "orders", "called_by": orders_by, "with_leaf": "a1", "calls": {
                "service": "stock", "called_by": stock_by, "with_leaf": "b2",
        } } })
    }

    fn well() -> Trust {
        let mut trust = Trust::new(["front", "orders", "stock"].into_iter(), false);
        let page = |name: &str| {
            json!({
                "id": id(name), "rotations": { "good": 3, "failed": 0 }, "chain": [{ "not_after_unix_seconds": 1004 }],
            })
        };
        for leaf in &mut trust.leaves {
            leaf.learn(&page(leaf.name), 1000);
        }
        trust.callers.learn(&answer(&id("front"), &id("orders"))).unwrap();
        for seen in &mut trust.taps {
            seen.connections = 1;
            seen.found = Found { bytes: 2048, records: 9, ..Found::default() };
        }
        trust.strangers.refused = 5;
        trust
    }

    fn text(lines: &[Line]) -> String {
        lines.iter().map(|line| line.render(false, 200) + "\n").collect()
    }

    #[test]
    fn who_called_whom_is_told_by_the_answers_and_somebody_else_is_an_error() {
        let mut callers = Callers::default();
        callers.learn(&answer(&id("front"), &id("orders"))).unwrap();
        assert_eq!(callers.by[1].as_deref(), Some("spiffe://demo.mesh/orders"));
        let error = callers.learn(&answer(&id("front"), &id("front"))).unwrap_err();
        assert_eq!(error, "stock was called by spiffe://demo.mesh/front, not by spiffe://demo.mesh/orders");
        let error = callers.learn(&json!({ "calls": { "service": "orders" } })).unwrap_err();
        assert!(error.starts_with("orders was called by somebody without identity"), "{error}");
    }

    #[test]
    fn the_table_fits_a_narrow_terminal_and_tells_identity_rotations_and_age() {
        let lines = well().table();
        assert!(lines.iter().all(|line| line.width() <= 80), "{}", text(&lines));
        let text = text(&lines);
        assert!(
            text.contains("orders          spiffe://demo.mesh/orders          2      2 s       4 s"),
            "{text}"
        );
        assert!(
            text.contains("front → orders  spiffe://demo.mesh/front        1     1       0    2 KiB     0 B"),
            "{text}"
        );
    }

    #[test]
    fn all_well_is_no_fault_and_everything_else_is_one() {
        let seconds = Duration::from_secs(14);
        let faults = |trust: &Trust| trust.faults(seconds).iter().map(|t| t.what.clone()).collect::<Vec<_>>();
        assert!(faults(&well()).is_empty());
        let summary = text(&well().summary());
        assert!(
            summary.contains("rotations 6 (front 2, orders 2, stock 2), 0 of 2 connections dropped"),
            "{summary}"
        );
        assert!(summary.contains("0 B in plain text of 4 KiB"), "{summary}");

        type Spoil = fn(&mut Trust);
        let cases: [(Spoil, &str); 7] = [
            (
                |t| t.leaves[1].rotations = 1,
                "orders renewed its certificate 1 times in 14 s, not at least 2 times",
            ),
            (|t| t.leaves[2].id = Some(id("else")), "stock is spiffe://demo.mesh/else"),
            (|t| t.taps[0].dropped = 1, "from front to orders were dropped in use: 1"),
            (|t| t.taps[1].found.plain_bytes = 1, "between the sidecars of orders and stock"),
            (|t| t.taps[1].found.first = Some("GET".into()), ""),
            (|t| t.taps[0].found.markers = 2, "the marker of the requests was read 2 times"),
            (|t| t.strangers.let_in = 1, "answered 1 callers without a certificate"),
        ];
        for (spoil, words) in cases {
            let mut trust = well();
            spoil(&mut trust);
            let faults = faults(&trust);
            if words.is_empty() {
                assert!(faults.is_empty());
            } else {
                assert!(faults.len() == 1 && faults[0].contains(words), "{words}: {faults:?}");
            }
        }
    }
}
