//! The paths of one host that are not fixed: templates in a tree of segments, expressions in groups by what they begin
//! with. Asked after the exact paths and before the prefixes.
//!
//! A look-up in the tree follows the path, at each segment first what is literally so, then the variable; it turns back
//! where that leads nowhere, so it looks at no more than the branches that match. Expressions are searched by one
//! automaton for each group whose beginning the path has, and those beginnings are looked up by hash.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::lengths::Lengths;
use super::regex::Set;
use super::template::{Segment, split};
use super::{Regex, Template};

/// Templates and expressions of one host.
#[derive(Default)]
pub(super) struct Patterns {
    templates: Tree,
    regexes: Groups,
    /// Octets that may stand behind the first slash, by their last six bits: most paths that nothing here means end at that.
    begins: u64,
}

/// What stands at a place of the table; `NO_SLOT` for nothing.
pub(super) type Slot = u32;
pub(super) const NO_SLOT: Slot = u32::MAX;

impl Patterns {
    /// Each template and expression once, with its slot.
    pub(super) fn new(templates: &[(Template, Slot)], regexes: Vec<(Regex, Slot)>) -> Self {
        let of_template = |(template, _): &(Template, Slot)| match template.segments.first() {
            Some(Segment::Literal(text)) => text.bytes().next(),
            Some(Segment::One(_) | Segment::Rest(_)) | None => None,
        };
        let of_regex = |(regex, _): &(Regex, Slot)| match regex.literal_prefix() {
            [b'/', octet, ..] => Some(*octet),
            _ => None,
        };
        let firsts = templates.iter().map(of_template).chain(regexes.iter().map(of_regex));
        // Where one does not say, it is any.
        let begins = firsts.fold(0, |all, first| all | first.map_or(u64::MAX, begin));
        Self { templates: Tree::new(templates), regexes: Groups::new(regexes), begins }
    }

    /// Whether any of them may mean this path; a no is never wrong.
    pub(super) fn may_mean(&self, path: &[u8]) -> bool {
        self.begins & path.get(1).map_or(u64::MAX, |octet| begin(*octet)) != 0
    }

    /// The first slot of the most exact template that `choose` takes.
    pub(super) fn template(&self, path: &[u8], choose: &impl Fn(Slot) -> Option<u32>) -> Option<u32> {
        self.templates.find(path, choose)
    }

    /// The slots of all expressions that the path matches.
    pub(super) fn each_regex(&self, path: &[u8], with: impl FnMut(Slot)) {
        self.regexes.each(path, with);
    }
}

const fn begin(octet: u8) -> u64 {
    1 << (octet & 63)
}

// --- templates ---

#[derive(Default)]
struct Tree {
    /// The first is the root, before the first slash.
    nodes: Box<[Node]>,
    literals: HashTable<Literal>,
    /// Of the literals that a path may begin with: most paths that no template means have none of those lengths.
    first: Lengths,
    seed: RandomState,
}

#[derive(Clone, Copy)]
struct Node {
    /// Where a variable leads; 0, which is the root, for nowhere.
    one: u32,
    /// What is meant when the path ends here.
    end: Slot,
    /// What is meant whatever is left.
    rest: Slot,
}

struct Literal {
    parent: u32,
    segment: Box<[u8]>,
    node: u32,
}

impl Tree {
    fn new(templates: &[(Template, Slot)]) -> Self {
        if templates.is_empty() {
            return Self::default();
        }
        const NEW: Node = Node { one: 0, end: NO_SLOT, rest: NO_SLOT };
        let mut nodes = vec![NEW];
        let mut tree = Self::default();
        for (template, slot) in templates {
            if let Some(Segment::Literal(text)) = template.segments.first() {
                tree.first.add(text.len());
            }
            let mut at = 0_u32;
            let mut ends = true;
            for segment in &template.segments {
                // 32 bits are enough, as for routes.
                let next = nodes.len() as u32;
                let found = match segment {
                    Segment::Literal(text) => match tree.literal(at, text.as_bytes()) {
                        Some(node) => node,
                        None => {
                            let literal = Literal { parent: at, segment: text.as_bytes().into(), node: next };
                            let hash = hash(&tree.seed, at, text.as_bytes());
                            let seed = &tree.seed;
                            tree.literals
                                .insert_unique(hash, literal, |l| self::hash(seed, l.parent, &l.segment));
                            next
                        }
                    },
                    Segment::One(_) => match nodes[at as usize].one {
                        0 => {
                            nodes[at as usize].one = next;
                            next
                        }
                        one => one,
                    },
                    Segment::Rest(_) => {
                        nodes[at as usize].rest = *slot;
                        ends = false;
                        break;
                    }
                };
                if found == next {
                    nodes.push(NEW);
                }
                at = found;
            }
            if ends {
                nodes[at as usize].end = *slot;
            }
        }
        tree.nodes = nodes.into();
        tree
    }

    fn find(&self, path: &[u8], choose: &impl Fn(Slot) -> Option<u32>) -> Option<u32> {
        let rest = path.strip_prefix(b"/")?;
        let root = self.nodes.first()?;
        if root.one == 0 && root.rest == NO_SLOT && !self.first.has(split(rest).0.len()) {
            return None;
        }
        self.walk(0, Some(rest), choose)
    }

    /// Goes on from a node with what is left behind the last slash; `None` when the path has ended. As deep as the
    /// deepest template.
    fn walk(&self, node: u32, rest: Option<&[u8]>, choose: &impl Fn(Slot) -> Option<u32>) -> Option<u32> {
        let at = self.nodes.get(node as usize)?;
        let Some(rest) = rest else { return choose(at.end) };
        let (segment, behind) = split(rest);
        let literal = self.literal(node, segment).and_then(|next| self.walk(next, behind, choose));
        literal
            .or_else(|| {
                let is_variable = at.one != 0 && !segment.is_empty();
                if is_variable { self.walk(at.one, behind, choose) } else { None }
            })
            .or_else(|| choose(at.rest))
    }

    fn literal(&self, parent: u32, segment: &[u8]) -> Option<u32> {
        let found = self
            .literals
            .find(hash(&self.seed, parent, segment), |l| l.parent == parent && *l.segment == *segment);
        found.map(|literal| literal.node)
    }
}

fn hash(seed: &RandomState, number: u32, octets: &[u8]) -> u64 {
    let mut hasher = seed.build_hasher();
    hasher.write_u32(number);
    hasher.write(octets);
    hasher.finish()
}

// --- expressions ---

#[derive(Default)]
struct Groups {
    /// By what the expressions of a group begin with, up to a slash.
    groups: HashTable<Group>,
    lengths: Lengths,
    /// The longest of those, and the slashes of the one with most.
    bytes_max: usize,
    slashes_max: usize,
    seed: RandomState,
}

struct Group {
    begin: Box<[u8]>,
    set: Set,
    slots: Box<[Slot]>,
}

impl Groups {
    fn new(regexes: Vec<(Regex, Slot)>) -> Self {
        let mut by_begin: std::collections::BTreeMap<Box<[u8]>, Vec<(Regex, Slot)>> =
            std::collections::BTreeMap::new();
        for (regex, slot) in regexes {
            let prefix = regex.literal_prefix();
            let end = memchr::memrchr(b'/', prefix).unwrap_or(0);
            by_begin.entry(prefix[..end].into()).or_default().push((regex, slot));
        }
        let mut all = Self::default();
        for (begin, regexes) in by_begin {
            all.lengths.add(begin.len());
            all.bytes_max = all.bytes_max.max(begin.len());
            all.slashes_max = all.slashes_max.max(begin.iter().filter(|b| **b == b'/').count());
            let (regexes, slots): (Vec<Regex>, Vec<Slot>) = regexes.into_iter().unzip();
            let group = Group { set: Set::new(&regexes), slots: slots.into(), begin };
            let seed = &all.seed;
            let hash = hash(seed, 0, &group.begin);
            all.groups.insert_unique(hash, group, |group| self::hash(seed, 0, &group.begin));
        }
        all
    }

    fn each(&self, path: &[u8], mut with: impl FnMut(Slot)) {
        if self.groups.is_empty() {
            return;
        }
        let mut ask = |begin: &[u8]| {
            if self.lengths.has(begin.len())
                && let Some(group) = self.groups.find(hash(&self.seed, 0, begin), |g| *g.begin == *begin)
            {
                group.set.each(path, |n| with(group.slots[n]));
            }
        };
        // Those without a beginning, then at each slash those that begin with what is before it: no more slashes, and no
        // more octets, than some beginning has.
        ask(&[]);
        let reach = path.len().min(self.bytes_max + 1);
        let slashes = memchr::memchr_iter(b'/', &path[..reach]).filter(|slash| *slash > 0);
        slashes.take(self.slashes_max).for_each(|slash| ask(&path[..slash]));
    }
}
