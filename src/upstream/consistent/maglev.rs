//! Maglev (Eisenbud et al. 2016): a table of places, filled by the endpoints in turn, each by an order of its own.
//!
//! Endpoints of equal weight have the same number of places to within one, so that the distribution is as even as the keys.
//! Taking an endpoint out moves its own keys and a few others (about a hundredth of the places with 65 537 of them and ten
//! endpoints, more with more endpoints).

use super::{Member, avalanche, within, xxh64};

/// The table.
#[derive(Debug)]
pub struct Maglev {
    /// Whose each place is. A service has at most 10 000 endpoints.
    places: Box<[u16]>,
    members: usize,
}

impl Maglev {
    /// Places that a key is led to before the table is given up: with half of the endpoints passed over, one key in 10⁹.
    const STEPS_MAX: u64 = 32;
    /// The seed of the step from place to place; that of the first place is 0. As Envoy has them.
    const STEP_SEED: u64 = 1;

    /// A table with so many places, a prime. Endpoints beyond the 65 535th have none.
    pub fn new(members: &[Member<'_>], size: u32) -> Self {
        struct Order {
            member: u16,
            weight: u64,
            /// What it has had of turns, in units of the largest weight.
            had: u64,
            next: u64,
            step: u64,
        }
        let size = u64::from(size.max(2));
        let mut names: Vec<(String, u16, u64)> = members
            .iter()
            .zip(0..u16::MAX)
            .map(|(member, n)| (member.address.to_string(), n, u64::from(member.weight.max(1))))
            .collect();
        // In an order that does not depend on the file's.
        names.sort_unstable();
        let heaviest = names.iter().map(|(_, _, weight)| *weight).max().unwrap_or(1);
        let mut orders: Vec<Order> = names
            .iter()
            .map(|(name, member, weight)| Order {
                member: *member,
                weight: *weight,
                had: 0,
                next: xxh64(name.as_bytes(), 0) % size,
                step: xxh64(name.as_bytes(), Self::STEP_SEED) % (size - 1) + 1,
            })
            .collect();
        let mut places = vec![u16::MAX; size as usize];
        let mut left = if orders.is_empty() { 0 } else { size };
        let mut turn = 0_u64;
        'filling: while left > 0 {
            turn += 1;
            for order in &mut orders {
                // One place each turn for the heaviest; the others as often as their weight says.
                if turn * order.weight < order.had {
                    continue;
                }
                order.had += heaviest;
                while places[order.next as usize] != u16::MAX {
                    order.next = (order.next + order.step) % size;
                }
                places[order.next as usize] = order.member;
                left -= 1;
                if left == 0 {
                    break 'filling;
                }
            }
        }
        Self {
            places: if orders.is_empty() { Box::default() } else { places.into() },
            members: members.len(),
        }
    }

    pub(super) fn find(&self, key: u64, takes: &mut impl FnMut(usize) -> bool) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut hash = key;
        for step in 0..Self::STEPS_MAX {
            let member = usize::from(self.places[within(hash, self.places.len())]);
            if takes(member) {
                return Some(member);
            }
            hash = avalanche(key.wrapping_add(step + 1));
        }
        None
    }

    pub(super) fn members(&self) -> usize {
        self.members
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.places)
    }
}
