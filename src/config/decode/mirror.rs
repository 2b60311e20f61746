//! `mirror` of a `[[route]]`: services that get copies of its requests. Called by `action`.

use super::super::raw::{At, RawMirror};
use super::super::reader::{Item, Reader};
use super::super::report::Problem;
use super::super::schema;
use super::{canary, missing};
use crate::route::mirror::Mirror;
use crate::route::percent::Percent;

pub(super) fn mirror(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<Vec<RawMirror>>> {
    let place = reader.place(item.span());
    let mut mirrors: Vec<RawMirror> = Vec::new();
    for (table, place) in reader.tables(&schema::MIRROR, item, Mirror::SERVICES_MAX) {
        let service = match table.value("service") {
            Some(item) => reader.string("route.mirror.service", item, "app-next").map(|text| {
                let name = text.value.as_ref().into();
                text.with(name)
            }),
            None => {
                missing(reader, place, "service", "an entry of `mirror`", "service = \"app-next\"");
                None
            }
        };
        let percent = match table.value("percent") {
            Some(item) => canary::percent(reader, "route.mirror.percent", item, (0.0, 100.0))
                .and_then(|at| Percent::new(at.value)),
            None => Some(Percent::ALL),
        };
        let (Some(service), Some(percent)) = (service, percent) else { continue };
        if let Some(first) = mirrors.iter().find(|first| first.service.value == service.value) {
            let (first, again) = (first.service.place, service.place);
            reader.problems.error(|| {
                Problem::at(again, format!("service `{}` gets copies twice", service.value))
                    .label("again here")
                    .other(first, "first here")
                    .help("give it one share")
            });
        }
        mirrors.push(RawMirror { service, percent });
    }
    Some(At { value: mirrors, place, variable: 0 })
}
