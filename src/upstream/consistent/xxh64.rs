//! XXH64: the hash behind keys and tables, with seed and all, so that shards, proxies and restarts agree on it for good.
//!
//! It is what Envoy and gRPC use for the same purpose, it is specified (xxHash's doc/xxhash_spec.md), and a key of a few
//! octets costs some 5 ns. Not for secrets: who chooses keys can make them collide, and gains no more than what many
//! requests with one key would give him.

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// The hash of some octets.
pub(in crate::upstream) fn xxh64(octets: &[u8], seed: u64) -> u64 {
    let (blocks, rest) = octets.as_chunks::<32>();
    let mut hash = if blocks.is_empty() { seed.wrapping_add(P5) } else { accumulate(blocks, seed) };
    hash = hash.wrapping_add(octets.len() as u64);
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        hash ^= round(0, u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
    }
    let (halves, rest) = rest.as_chunks::<4>();
    for half in halves {
        hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(P1);
        hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
    }
    for octet in rest {
        hash ^= u64::from(*octet).wrapping_mul(P5);
        hash = hash.rotate_left(11).wrapping_mul(P1);
    }
    avalanche(hash)
}

/// Spreads the differences of a number over all of its bits: one to one.
pub(in crate::upstream) fn avalanche(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

fn accumulate(blocks: &[[u8; 32]], seed: u64) -> u64 {
    let mut lanes =
        [seed.wrapping_add(P1).wrapping_add(P2), seed.wrapping_add(P2), seed, seed.wrapping_sub(P1)];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = round(*lane, u64::from_le_bytes(*word));
        }
    }
    let turned = lanes.iter().zip([1, 7, 12, 18]).map(|(lane, by)| lane.rotate_left(by));
    let sum = turned.fold(0, u64::wrapping_add);
    lanes.iter().fold(sum, |hash, lane| (hash ^ round(0, *lane)).wrapping_mul(P1).wrapping_add(P4))
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with the reference implementation (python-xxhash 3).
    #[test]
    fn it_is_the_function_that_others_have() {
        let long: Vec<u8> = (0..101).collect();
        let fox = b"The quick brown fox jumps over the lazy dog";
        for (octets, zero, one) in [
            (&b""[..], 0xef46_db37_51d8_e999, 0xd5af_ba13_36a3_be4b),
            (b"a", 0xd24e_c4f1_a98c_6e5b, 0xdec2_bc81_c3cd_46c6),
            (b"abc", 0x44bc_2cf5_ad77_0999, 0xbea9_ca81_9932_8908),
            (b"127.0.0.1:9000_0", 0x18c5_bea5_1429_70f9, 0x24e1_ec91_37b3_02e1),
            (fox, 0x0b24_2d36_1fda_71bc, 0xdf50_91b6_dad2_c6db),
            (&long, 0xe990_3849_5f85_381e, 0x4364_9992_8c06_f890),
        ] {
            assert_eq!((xxh64(octets, 0), xxh64(octets, 1)), (zero, one), "{octets:?}");
        }
    }
}
