//! Names of fields, as the `http` crate has them, without making each anew.
//!
//! A name that is not one of the standard ones is an allocation in that crate; messages of a mesh carry half a dozen of them
//! (`x-forwarded-for`, `traceparent`, …), always the same. So each thread remembers some that it saw: a few, of bounded length, by a
//! hash that anybody may have collide, which costs what it costs without. Refuses to judge names: what is no name is none here
//! either.

use std::cell::RefCell;

use http::HeaderName;
use http::header::InvalidHeaderName;

use super::repeats::digest;

/// Names remembered by a thread; one that hashes to the place of another takes it. With the next, 4 KiB of octets at most.
const NAMES: usize = 64;
/// Octets of a name that is remembered, at most.
const NAME_MAX: usize = 64;

thread_local! {
    static SEEN: RefCell<[Option<HeaderName>; NAMES]> = const { RefCell::new([const { None }; NAMES]) };
}

/// The name that is written so, in lower case or not.
///
/// # Errors
/// When it is none.
pub(super) fn name(octets: &str) -> Result<HeaderName, InvalidHeaderName> {
    let octets = octets.as_bytes();
    SEEN.with_borrow_mut(|seen| {
        let place = &mut seen[digest(octets) as usize % NAMES];
        if let Some(name) = place.as_ref().filter(|name| name.as_str().as_bytes() == octets) {
            return Ok(name.clone());
        }
        let name = HeaderName::from_bytes(octets)?;
        if octets.len() <= NAME_MAX {
            *place = Some(name.clone());
        }
        Ok(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_are_whoever_came_before_them() {
        // More than there is room for, each twice in a row and all of them twice.
        let names: Vec<String> = (0..NAMES * 3).map(|n| format!("x-name-{n}")).collect();
        for round in 0..2 {
            for text in &names {
                for _ in 0..2 {
                    assert_eq!(name(text).unwrap().as_str(), text, "round {round}");
                }
            }
        }
        for text in ["content-type", "date", "x-forwarded-for"] {
            assert_eq!(name(text).unwrap(), HeaderName::from_bytes(text.as_bytes()).unwrap());
        }
    }

    #[test]
    fn one_in_another_case_is_the_same_name_in_lower_case() {
        for text in ["X-Case", "x-case", "X-CASE", "x-case"] {
            assert_eq!(name(text).unwrap().as_str(), "x-case");
        }
    }

    #[test]
    fn a_name_that_is_known_is_not_made_anew() {
        let first = name("x-made-once").unwrap();
        assert_eq!(name("x-made-once").unwrap().as_str().as_ptr(), first.as_str().as_ptr());
        let long = "x".repeat(NAME_MAX + 1);
        let first = name(&long).unwrap();
        assert_ne!(name(&long).unwrap().as_str().as_ptr(), first.as_str().as_ptr(), "too long to be kept");
    }

    #[test]
    fn what_is_no_name_is_refused_and_not_remembered() {
        for text in ["", "x y", "x:y", "\u{e4}", &"x".repeat(70_000)] {
            for _ in 0..2 {
                assert!(name(text).is_err(), "{} octets", text.len());
            }
        }
    }
}
