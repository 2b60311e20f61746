//! `[overload]`: what happens when the process itself is short of something. Called by `decode`.

use super::super::defaults;
use super::super::raw::{At, MemoryMax};
use super::super::reader::{Opened, Reader};

pub(super) fn overload(reader: &mut Reader<'_>, table: &Opened<'_>, slot: &mut Option<At<MemoryMax>>) {
    let Some(item) = table.value("memory_max") else { return };
    let name = defaults::MEMORY_MAX.name;
    let word = [("off", MemoryMax::Off), ("cgroup", MemoryMax::Cgroup)]
        .into_iter()
        .find_map(|(text, meant)| Some(super::word(reader, name, item, text)?.with(meant)));
    let value = match word {
        Some(value) => Some(value),
        None => reader.size(&defaults::MEMORY_MAX, item).map(|size| size.with(MemoryMax::Bytes(size.value))),
    };
    super::once(reader, name, slot, value);
}
