//! A ring of points (Karger et al. 1997; ketama): each endpoint has many, at the hashes of `address_0`, `address_1`, …, and a
//! key belongs to the first point at or behind its own hash.
//!
//! With v points an endpoint's part differs from its share by 1/√v (standard deviation), because v distances between
//! random points are summed up. Taking an endpoint out moves exactly its own keys.

use std::fmt::Write as _;

use super::{Member, xxh64};

/// The ring.
#[derive(Debug)]
pub struct Ring {
    /// Where the points are, in order.
    at: Box<[u64]>,
    /// Whose each is.
    member: Box<[u32]>,
    /// For each range of hashes that have the same first bits the first point in it or behind: about one point is in each,
    /// so that a key finds its own without a search.
    starts: Box<[u32]>,
    /// How many of the last bits a range leaves open.
    shift: u32,
    members: usize,
}

impl Ring {
    /// Points of all endpoints together: with 12 bytes and a start of 4 for each, 16 MiB. With more endpoints than that
    /// leaves room for each has fewer.
    pub const POINTS_MAX: usize = 1 << 20;
    /// Points looked at before the ring is given up: with nine of ten endpoints passed over, one key in 700 000 comes to it.
    const STEPS_MAX: usize = 128;

    /// A ring on which an endpoint of average weight has so many points.
    pub fn new(members: &[Member<'_>], points: u32) -> Self {
        let total: u64 = members.iter().map(|m| u64::from(m.weight)).sum();
        let mean = total as f64 / members.len().max(1) as f64;
        let each = (Self::POINTS_MAX / members.len().max(1)).clamp(1, points.max(1) as usize);
        let mut all: Vec<(u64, u32)> = Vec::with_capacity(each * members.len());
        let mut name = String::new();
        for (n, member) in (0_u32..).zip(members) {
            let own = (each as f64 * f64::from(member.weight) / mean).round().max(1.0) as u32;
            name.clear();
            let _ = write!(name, "{}_", member.address);
            let stem = name.len();
            for point in 0..own {
                name.truncate(stem);
                let _ = write!(name, "{point}");
                all.push((xxh64(name.as_bytes(), 0), n));
            }
        }
        // Two points in one place are one in 2⁶⁴ × 2 / points²; then the address decides, as it is the same everywhere.
        let address = |n: u32| members.get(n as usize).map(|member| member.address.to_string());
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| address(a.1).cmp(&address(b.1))));
        let bits = all.len().max(2).next_power_of_two().trailing_zeros();
        let shift = 64 - bits;
        let mut starts = Vec::with_capacity(1 << bits);
        let mut point = 0;
        for range in 0..1_u64 << bits {
            while all.get(point).is_some_and(|(at, _)| at >> shift < range) {
                point += 1;
            }
            starts.push(u32::try_from(point).unwrap_or(u32::MAX));
        }
        Self {
            at: all.iter().map(|(at, _)| *at).collect(),
            member: all.iter().map(|(_, member)| *member).collect(),
            starts: starts.into(),
            shift,
            members: members.len(),
        }
    }

    pub(super) fn find(&self, key: u64, takes: &mut impl FnMut(usize) -> bool) -> Option<usize> {
        if self.at.is_empty() {
            return None;
        }
        let mut point = self.starts[(key >> self.shift) as usize] as usize;
        while point < self.at.len() && self.at[point] < key {
            point += 1;
        }
        let mut passed_over = None;
        for _ in 0..Self::STEPS_MAX.min(self.at.len()) {
            if point >= self.at.len() {
                point = 0;
            }
            let member = self.member[point];
            // Often two points of one endpoint in a row.
            if passed_over != Some(member) {
                if takes(member as usize) {
                    return Some(member as usize);
                }
                passed_over = Some(member);
            }
            point += 1;
        }
        None
    }

    pub(super) fn members(&self) -> usize {
        self.members
    }

    /// How many points there are.
    pub fn points(&self) -> usize {
        self.at.len()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.at) + size_of_val(&*self.member) + size_of_val(&*self.starts)
    }
}
