//! `[[workload]]`: what is known of those who call. Called by `decode`. Refuses a workload that nothing tells: it would be everybody.

use super::super::policy_text;
use super::super::raw::RawWorkload;
use super::super::reader::{Opened, Reader};
use super::super::report::{Place, Problem};
use super::balance::labels;
use super::policy::{entries, not_empty};
use super::tls::ID_EXAMPLE;
use super::{missing, name};

pub(super) fn workload(reader: &mut Reader<'_>, table: &Opened<'_>, place: Place) -> RawWorkload {
    if table.value("labels").is_none() {
        missing(reader, place, "labels", "a workload", "labels = { version = \"v2\" }");
    }
    if table.value("from").is_none() && table.value("sources").is_none() {
        reader.problems.error(|| {
            Problem::at(place, "nothing tells that this workload calls").help(format!(
                "write by what it is known: from = [\"{ID_EXAMPLE}\"], sources = [\"10.0.0.0/8\"], or both"
            ))
        });
    }
    let mut given = |key: &'static str, full: &str| {
        let item = table.value(key)?;
        not_empty(reader, full, item).then_some(item)
    };
    let from = given("from", "workload.from");
    let sources = given("sources", "workload.sources");
    RawWorkload {
        name: table.value("name").and_then(|item| name(reader, "workload.name", item, "web-v2")),
        from: from.and_then(|item| entries(reader, "workload.from", item, ID_EXAMPLE, policy_text::from)),
        sources: sources
            .and_then(|item| entries(reader, "workload.sources", item, "10.0.0.0/8", policy_text::source)),
        labels: table.value("labels").and_then(|item| labels(reader, "workload.labels", item)),
    }
}
