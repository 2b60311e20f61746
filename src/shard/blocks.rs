//! The process's allocator: mimalloc, and before it for each shard lists of the blocks that it has freed, one for each size, of which it
//! takes the last one first.
//!
//! What was freed last is still in the CPU's caches. An allocator that gives all blocks of a page before it comes to one again, as
//! mimalloc does, walks through 64 KiB for each small size that a request takes, and through 512 KiB for records of TLS. (Lists of a
//! thread's own, the last one first: Bonwick and Adams, "Magazines and Vmem", USENIX 2001.) Worth 1 % of the CPU of a request through two
//! proxies, 0 to 3 % by HTTP/2, 1 % of a handshake, nothing by HTTP/1.1, which takes nothing from the heap.
//!
//! Lists hold [`KEPT_MAX`] octets of each size and give half of what lay unused for a second back ([`trim`]), all of it when memory is
//! short ([`release`]). Threads that did not ask for them ([`keep`]) have none: what they free goes to mimalloc at once. Refuses to know
//! what blocks are for.
#![allow(unsafe_code, reason = "an allocator cannot be written without; what holds is said at each block")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use mimalloc::MiMalloc;

/// Octets kept of each size and shard: all sizes together are 5.5 MiB at most.
pub const KEPT_MAX: usize = 128 * 1024;
/// The largest block that is kept: a record of TLS, and what surrounds it.
const LARGEST: usize = 32 * 1024;
/// What all blocks that are kept are aligned to, and the step between small sizes.
const ALIGN: usize = 16;
/// Sizes up to here are [`ALIGN`] apart; above there are four between two powers of two.
const FINE: usize = 256;
const FINE_SIZES: usize = FINE / ALIGN;
const SIZES: usize = FINE_SIZES + 4 * (LARGEST.ilog2() - FINE.ilog2()) as usize;
/// A power of two, so that no index needs a look.
const PLACES: usize = SIZES.next_power_of_two();

/// See the head of this file.
#[derive(Debug)]
pub struct Allocator;

/// The lists of a thread; while this lives, what the thread frees is kept for it.
#[derive(Debug)]
pub struct Keeping {
    /// It stays on its thread.
    thread: PhantomData<*const ()>,
}

/// Keeps what this thread frees from now on.
#[must_use]
pub fn keep() -> Keeping {
    LISTS.with(|lists| lists.open(KEPT_MAX));
    Keeping { thread: PhantomData }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        LISTS.with(|lists| {
            lists.open(0);
            lists.release(&MiMalloc);
        });
    }
}

/// Once a second: frees half of what lay unused for the whole of it.
pub(super) fn trim() {
    LISTS.with(|lists| lists.trim(&MiMalloc));
}

/// Frees all that is kept, and has the system take it: mimalloc does that by and by, with what the thread frees and allocates later,
/// and one that has nothing to do would hold for ever what it held at its busiest.
pub fn release() {
    LISTS.with(|lists| lists.release(&MiMalloc));
    // SAFETY: it is mimalloc's own function (mimalloc.h), with which this crate is linked by `MiMalloc`; any thread may call it at
    // any time but from within an allocation, and it moves nothing that is in use.
    unsafe { mi_collect(true) };
}

unsafe extern "C" {
    /// Gives back pages of this thread's heap and of ended threads that nothing lies in, and to the system what has been given back.
    fn mi_collect(force: bool);
}

thread_local! {
    /// Only blocks of [`Allocator`] are in it: who has another allocator has empty lists.
    static LISTS: Lists = const { Lists::new() };
}

struct Lists([List; PLACES]);

/// Blocks of one size, the first octets of each of which say where the next one is.
struct List {
    first: Cell<*mut u8>,
    len: Cell<u32>,
    /// The fewest there were since the last trim.
    len_min: Cell<u32>,
    len_max: Cell<u32>,
}

/// Which list blocks of that many octets are in; 0 octets are never asked for.
#[inline]
const fn place(octets: usize) -> usize {
    let last = octets.wrapping_sub(1);
    let place = if octets <= FINE {
        last / ALIGN
    } else {
        let power = last.ilog2() as usize;
        FINE_SIZES + 4 * (power - FINE.ilog2() as usize) + ((last >> (power - 2)) & 3)
    };
    place % PLACES
}

/// How many octets the blocks of a list have.
const fn octets(place: usize) -> usize {
    match place.checked_sub(FINE_SIZES) {
        None => (place + 1) * ALIGN,
        Some(coarse) => (5 + coarse % 4) << (coarse / 4 + FINE.ilog2() as usize - 2),
    }
}

/// What the allocator behind is asked for where a block might be kept one day.
const fn whole(place: usize) -> Layout {
    match Layout::from_size_align(octets(place), ALIGN) {
        Ok(layout) => layout,
        Err(_) => panic!("sizes are far from what a layout may have"),
    }
}

/// Whether blocks for this are kept.
#[inline]
const fn may_be_kept(layout: Layout) -> bool {
    layout.size() <= LARGEST && layout.align() <= ALIGN
}

impl Lists {
    const fn new() -> Self {
        Self([const { List::new() }; PLACES])
    }

    /// Keeps so many octets of each size from now on, of the largest four blocks at least; 0 for none.
    fn open(&self, octets_max: usize) {
        for (place, list) in self.0.iter().enumerate().take(SIZES) {
            list.len_max.set(u32::try_from(octets_max / octets(place)).unwrap_or(u32::MAX));
        }
    }

    /// A block for this, kept or new; null where there is no memory.
    ///
    /// # Safety
    /// As [`GlobalAlloc::alloc`]; all blocks in these lists came from `behind` by these lists.
    #[inline]
    unsafe fn take(&self, layout: Layout, behind: &impl GlobalAlloc) -> *mut u8 {
        if !may_be_kept(layout) {
            // SAFETY: as the caller's.
            return unsafe { behind.alloc(layout) };
        }
        let place = place(layout.size());
        match self.0[place].pop() {
            Some(block) => block.as_ptr(),
            // SAFETY: no size is 0.
            None => unsafe { new(place, behind) },
        }
    }

    /// Keeps a block, or frees it.
    ///
    /// # Safety
    /// As [`GlobalAlloc::dealloc`], of a block that [`Self::take`] has given of any lists, with the same `behind`.
    #[inline]
    unsafe fn give(&self, block: *mut u8, layout: Layout, behind: &impl GlobalAlloc) {
        if !may_be_kept(layout) {
            // SAFETY: as the caller's; it came from there with this layout.
            return unsafe { behind.dealloc(block, layout) };
        }
        let place = place(layout.size());
        // SAFETY: the block is its giver's, of this size, and nobody uses it from here on.
        if !unsafe { self.0[place].push(block) } {
            // SAFETY: as above, and it is not kept.
            unsafe { free(block, place, behind) };
        }
    }

    /// Makes a block larger or smaller, which may move it; null where there is no memory, and then it stays as it is.
    ///
    /// # Safety
    /// As [`GlobalAlloc::realloc`] and [`Self::give`].
    #[inline]
    unsafe fn resize(
        &self,
        block: *mut u8,
        layout: Layout,
        new_size: usize,
        behind: &impl GlobalAlloc,
    ) -> *mut u8 {
        // SAFETY: the caller has seen to it that the size, rounded up, is one that a layout may have.
        let wanted = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (may_be_kept(layout), may_be_kept(wanted)) {
            // SAFETY: as the caller's; it came from there with this layout.
            (false, false) => return unsafe { behind.realloc(block, layout, new_size) },
            // It has the room of its list's blocks.
            (true, true) if place(layout.size()) == place(new_size) => return block,
            _ => {}
        }
        // SAFETY: as the caller's.
        let other = unsafe { self.take(wanted, behind) };
        if !other.is_null() {
            // SAFETY: both are blocks of at least so many octets, and a new one is no part of an old one.
            unsafe { ptr::copy_nonoverlapping(block, other, layout.size().min(new_size)) };
            // SAFETY: as the caller's.
            unsafe { self.give(block, layout, behind) };
        }
        other
    }

    /// Frees half of what lay unused since the last time.
    fn trim(&self, behind: &impl GlobalAlloc) {
        for (place, list) in self.0.iter().enumerate().take(SIZES) {
            for _ in 0..list.len_min.get().div_ceil(2) {
                list.free_one(place, behind);
            }
            list.len_min.set(list.len.get());
        }
    }

    fn release(&self, behind: &impl GlobalAlloc) {
        for (place, list) in self.0.iter().enumerate().take(SIZES) {
            while list.free_one(place, behind) {}
        }
    }
}

impl List {
    const fn new() -> Self {
        Self {
            first: Cell::new(ptr::null_mut()),
            len: Cell::new(0),
            len_min: Cell::new(0),
            len_max: Cell::new(0),
        }
    }

    #[inline]
    fn pop(&self) -> Option<NonNull<u8>> {
        let first = NonNull::new(self.first.get())?;
        // SAFETY: a block in the list, whose first octets `push` has written.
        let next = unsafe { first.cast::<*mut u8>().read() };
        self.first.set(next);
        let len = self.len.get().wrapping_sub(1);
        self.len.set(len);
        if len < self.len_min.get() {
            self.len_min.set(len);
        }
        Some(first)
    }

    /// Keeps a block, unless there are enough.
    ///
    /// # Safety
    /// The block is the list's from here on, as large as its others, and not null.
    #[inline]
    unsafe fn push(&self, block: *mut u8) -> bool {
        let len = self.len.get();
        if len >= self.len_max.get() {
            return false;
        }
        // SAFETY: blocks of lists are aligned to more than a pointer, have room for one, and nobody else uses this one.
        unsafe { block.cast::<*mut u8>().write(self.first.get()) };
        self.first.set(block);
        self.len.set(len.wrapping_add(1));
        true
    }

    /// Whether there was one.
    fn free_one(&self, place: usize, behind: &impl GlobalAlloc) -> bool {
        let Some(block) = self.pop() else { return false };
        // SAFETY: it is of this list, and in it no more.
        unsafe { free(block.as_ptr(), place, behind) };
        true
    }
}

/// A block for a list that has none.
///
/// # Safety
/// As [`GlobalAlloc::alloc`].
#[cold]
#[inline(never)]
unsafe fn new(place: usize, behind: &impl GlobalAlloc) -> *mut u8 {
    // SAFETY: no list's blocks have no octets.
    unsafe { behind.alloc(whole(place)) }
}

/// Frees a block that is in no list.
///
/// # Safety
/// It came from [`new`] for this place, with the same `behind`, and nobody uses it.
#[cold]
#[inline(never)]
unsafe fn free(block: *mut u8, place: usize, behind: &impl GlobalAlloc) {
    // SAFETY: as the caller's; it was made with this layout.
    unsafe { behind.dealloc(block, whole(place)) };
}

// Never inlined: in each place that allocates it made a program larger by a quarter, and slower.
// SAFETY: `Lists` gives blocks that are in no list and nobody's, at least as large and as aligned as asked for: by `behind`, whose
// contract is the same, or such that were given back to it. A thread's lists are touched by itself alone, and by nothing that
// allocates meanwhile: neither they nor mimalloc call what is not theirs. No call of these unwinds.
unsafe impl GlobalAlloc for Allocator {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's; the lists of threads hold only what came from here.
        LISTS.with(|lists| unsafe { lists.take(layout, &MiMalloc) })
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        LISTS.with(|lists| unsafe { lists.give(block, layout, &MiMalloc) });
    }

    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as the caller's.
        LISTS.with(|lists| unsafe { lists.resize(block, layout, new_size, &MiMalloc) })
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !may_be_kept(layout) {
            // SAFETY: as the caller's. Large ones come from the kernel, which has emptied them.
            return unsafe { MiMalloc.alloc_zeroed(layout) };
        }
        // SAFETY: as the caller's.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: a block of at least so many octets.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::System;
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::*;

    /// An allocator that knows what of it is in use, and by which layout.
    #[derive(Default)]
    struct Counted(RefCell<HashMap<usize, Layout>>);

    // SAFETY: it is the system's.
    unsafe impl GlobalAlloc for Counted {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: as the caller's.
            let block = unsafe { System.alloc(layout) };
            assert!(self.0.borrow_mut().insert(block as usize, layout).is_none());
            block
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            assert_eq!(self.0.borrow_mut().remove(&(block as usize)), Some(layout), "freed as it was made");
            // SAFETY: as the caller's.
            unsafe { System.dealloc(block, layout) };
        }
    }

    fn layout(octets: usize) -> Layout {
        Layout::from_size_align(octets, 8).unwrap()
    }

    fn take(lists: &Lists, octets: usize, behind: &Counted) -> *mut u8 {
        // SAFETY: of `behind` alone.
        unsafe { lists.take(layout(octets), behind) }
    }

    fn give(lists: &Lists, block: *mut u8, octets: usize, behind: &Counted) {
        // SAFETY: a block of `take` for as many octets.
        unsafe { lists.give(block, layout(octets), behind) };
    }

    #[test]
    fn every_size_has_a_list_whose_blocks_have_room_for_it_and_little_more() {
        for size in 1..=LARGEST {
            let place = place(size);
            assert!(place < SIZES, "{size}: {place}");
            let room = octets(place);
            assert!(room >= size && (room - size < ALIGN || room - size < size / 4), "{size}: {room}");
        }
        for other in 1..SIZES {
            assert!(octets(other) > octets(other - 1));
            assert_eq!(place(octets(other)), other);
            assert_eq!(place(octets(other - 1) + 1), other);
        }
        assert_eq!(octets(SIZES - 1), LARGEST);
    }

    /// A block of the process's allocator itself.
    fn own(octets: usize) -> *mut u8 {
        // SAFETY: more than no octets.
        unsafe { Allocator.alloc(layout(octets)) }
    }

    fn give_own(block: *mut u8, octets: usize) {
        // SAFETY: of `own` for as many octets.
        unsafe { Allocator.dealloc(block, layout(octets)) };
    }

    #[test]
    fn a_thread_that_asked_for_it_keeps_what_it_frees_until_it_no_longer_does() {
        let kept = || LISTS.with(|lists| lists.0.iter().map(|list| list.len.get()).sum::<u32>());
        let keeping = keep();
        let blocks = [own(500), own(500), own(20_000)];
        blocks.into_iter().zip([500, 500, 20_000]).for_each(|(block, octets)| give_own(block, octets));
        assert_eq!(kept(), 3);
        std::thread::spawn(move || assert_eq!(kept(), 0, "a list is a thread's own")).join().unwrap();
        trim();
        trim();
        assert_eq!(kept(), 1, "half of each size, rounded up");
        release();
        assert_eq!(kept(), 0);
        give_own(own(500), 500);
        drop(keeping);
        assert_eq!(kept(), 0);
        give_own(own(500), 500);
        assert_eq!(kept(), 0);
    }

    #[test]
    fn what_is_released_goes_back_to_the_system_though_nothing_is_allocated_after_it() {
        /// Of this process: other tests allocate meanwhile, but not as much.
        fn resident() -> usize {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
            pages * 4096
        }
        const OCTETS: usize = 16 * 1024;
        const ALL: usize = 256 << 20;
        let _keeping = keep();
        let blocks: Vec<*mut u8> = (0..ALL / OCTETS)
            .map(|_| {
                let block = own(OCTETS);
                // SAFETY: it has so many octets.
                unsafe { block.write_bytes(1, OCTETS) };
                block
            })
            .collect();
        let held = resident();
        assert!(held > ALL);
        blocks.into_iter().for_each(|block| give_own(block, OCTETS));
        release();
        let left = resident();
        assert!(left < held - ALL / 4 * 3, "{held} octets were resident, {left} are");
    }

    #[test]
    fn a_block_that_is_to_be_empty_has_nothing_of_who_had_it_before() {
        let _keeping = keep();
        for octets in [16, 1000, LARGEST, LARGEST + 1] {
            let block = own(octets);
            // SAFETY: it has so many octets.
            unsafe { block.write_bytes(0xa5, octets) };
            give_own(block, octets);
            // SAFETY: more than no octets.
            let empty = unsafe { Allocator.alloc_zeroed(layout(octets)) };
            assert!(empty == block || octets > LARGEST, "kept ones are taken again");
            // SAFETY: as above.
            assert!(unsafe { std::slice::from_raw_parts(empty, octets) }.iter().all(|octet| *octet == 0));
            give_own(empty, octets);
        }
    }

    #[test]
    fn what_was_freed_last_is_taken_first() {
        let (lists, behind) = (Lists::new(), Counted::default());
        lists.open(KEPT_MAX);
        let blocks = [100, 100, 110, 300].map(|octets| take(&lists, octets, &behind));
        for (block, octets) in blocks.iter().zip([100, 100, 110, 300]) {
            give(&lists, *block, octets, &behind);
        }
        assert_eq!(take(&lists, 97, &behind), blocks[2], "of as many octets, rounded up");
        assert_eq!(take(&lists, 112, &behind), blocks[1]);
        assert_eq!(take(&lists, 257, &behind), blocks[3]);
        assert_eq!(behind.0.borrow().len(), 4);
        for (block, octets) in blocks[1..].iter().zip([112, 97, 257]) {
            give(&lists, *block, octets, &behind);
        }
        lists.release(&behind);
        assert!(behind.0.borrow().is_empty());
    }

    #[test]
    fn who_did_not_ask_for_it_keeps_nothing() {
        let (lists, behind) = (Lists::new(), Counted::default());
        let block = take(&lists, 100, &behind);
        give(&lists, block, 100, &behind);
        assert!(behind.0.borrow().is_empty());
        // Nor who does no longer; what he has is used up.
        lists.open(KEPT_MAX);
        let blocks = [take(&lists, 100, &behind), take(&lists, 100, &behind)];
        give(&lists, blocks[0], 100, &behind);
        lists.open(0);
        give(&lists, blocks[1], 100, &behind);
        assert_eq!(behind.0.borrow().len(), 1);
        assert_eq!(take(&lists, 100, &behind), blocks[0]);
        give(&lists, blocks[0], 100, &behind);
        assert!(behind.0.borrow().is_empty());
    }

    #[test]
    fn no_more_is_kept_of_a_size_than_may_be() {
        let (lists, behind) = (Lists::new(), Counted::default());
        lists.open(KEPT_MAX);
        for octets in [16, 240, 1000, LARGEST] {
            let blocks: Vec<_> = (0..2 * KEPT_MAX / octets).map(|_| take(&lists, octets, &behind)).collect();
            blocks.iter().for_each(|block| give(&lists, *block, octets, &behind));
            let kept: usize = behind.0.borrow().values().map(Layout::size).sum();
            assert!(kept <= KEPT_MAX && kept > KEPT_MAX / 2, "{octets}: {kept}");
            lists.release(&behind);
            assert!(behind.0.borrow().is_empty());
        }
    }

    #[test]
    fn half_of_what_lay_unused_since_the_last_trim_is_freed() {
        let (lists, behind) = (Lists::new(), Counted::default());
        lists.open(KEPT_MAX);
        let blocks: Vec<_> = (0..10).map(|_| take(&lists, 64, &behind)).collect();
        blocks.iter().for_each(|block| give(&lists, *block, 64, &behind));
        lists.trim(&behind);
        assert_eq!(behind.0.borrow().len(), 10, "all of it was in use a moment ago");
        // Six of ten are not needed.
        let blocks: Vec<_> = (0..4).map(|_| take(&lists, 64, &behind)).collect();
        blocks.iter().for_each(|block| give(&lists, *block, 64, &behind));
        lists.trim(&behind);
        assert_eq!(behind.0.borrow().len(), 7);
        for left in [3, 1, 0] {
            lists.trim(&behind);
            assert_eq!(behind.0.borrow().len(), left);
        }
    }

    #[test]
    fn what_is_large_or_aligned_to_more_is_passed_on_as_it_is() {
        let (lists, behind) = (Lists::new(), Counted::default());
        lists.open(KEPT_MAX);
        for layout in
            [Layout::from_size_align(LARGEST + 1, 8), Layout::from_size_align(64, 64)].map(Result::unwrap)
        {
            // SAFETY: of `behind` alone.
            let block = unsafe { lists.take(layout, &behind) };
            assert_eq!(behind.0.borrow().get(&(block as usize)), Some(&layout));
            assert_eq!(block as usize % layout.align(), 0);
            // SAFETY: it was taken for this.
            unsafe { lists.give(block, layout, &behind) };
            assert!(behind.0.borrow().is_empty());
        }
    }

    /// Against a model that knows what each block should hold.
    #[test]
    fn blocks_are_nobody_elses_and_keep_what_is_written_to_them() {
        let seed = std::env::var("RINGMESH_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        eprintln!("RINGMESH_SEED={seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (lists, behind) = (Lists::new(), Counted::default());
        lists.open(4096);
        let mut held: Vec<(*mut u8, usize, u8)> = Vec::new();
        // SAFETY: of what is held, which has so many octets.
        let fill = |block: *mut u8, octets: usize, with: u8| unsafe { block.write_bytes(with, octets) };
        let holds = |block: *mut u8, octets: usize, what: u8| {
            // SAFETY: as above.
            unsafe { std::slice::from_raw_parts(block, octets) }.iter().all(|octet| *octet == what)
        };
        for step in 0..20_000_u32 {
            let mark = step as u8;
            let octets = if rng.u8(..) < 20 { rng.usize(1..3 * LARGEST) } else { rng.usize(1..1200) };
            match rng.u8(0..100) {
                0..45 => {
                    let block = take(&lists, octets, &behind);
                    fill(block, octets, mark);
                    held.push((block, octets, mark));
                }
                45..85 if !held.is_empty() => {
                    let (block, octets, mark) = held.swap_remove(rng.usize(..held.len()));
                    assert!(holds(block, octets, mark));
                    give(&lists, block, octets, &behind);
                }
                85..99 if !held.is_empty() => {
                    let which = rng.usize(..held.len());
                    let (block, old, before) = held[which];
                    // SAFETY: a block of as many octets, which is held no more after this.
                    let moved = unsafe { lists.resize(block, layout(old), octets, &behind) };
                    assert!(holds(moved, old.min(octets), before));
                    fill(moved, octets, mark);
                    held[which] = (moved, octets, mark);
                }
                99 => lists.trim(&behind),
                _ => {}
            }
        }
        for (block, octets, mark) in held {
            assert!(holds(block, octets, mark));
            give(&lists, block, octets, &behind);
        }
        lists.release(&behind);
        assert!(behind.0.borrow().is_empty());
    }
}
