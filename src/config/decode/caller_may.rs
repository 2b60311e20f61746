//! `caller_may` of a `[[route]]`: that its callers may say something of their requests' retries and timeouts, and how much. Called by
//! `decode`. What it must fit stands elsewhere in the route, and is looked at by `compile`.

use super::super::raw::At;
use super::super::reader::{Item, Reader};
use super::super::{defaults, schema};
use crate::route::wish::May;

pub(super) fn caller_may(reader: &mut Reader<'_>, item: &Item<'_>) -> Option<At<May>> {
    let table = reader.table(&schema::CALLER_MAY, item)?;
    let place = reader.place(item.span());
    let attempts = table.value("attempts_max");
    let attempts = attempts.and_then(|item| reader.count(&defaults::CALLER_ATTEMPTS_MAX, item));
    let mut time = |word, key| table.value(word).and_then(|item| reader.duration(key, item));
    let timeout = time("timeout_max", &defaults::CALLER_TIMEOUT_MAX);
    let attempt_timeout = time("attempt_timeout_max", &defaults::CALLER_ATTEMPT_TIMEOUT_MAX);
    let value = May {
        attempts_max: attempts.map(|at| at.value),
        timeout_max: timeout.map(|at| at.value),
        attempt_timeout_max: attempt_timeout.map(|at| at.value),
    };
    Some(At { value, place, variable: 0 })
}
