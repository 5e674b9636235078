//! The roots of several small contents at once, each lane of the vector unit with another of them.
//!
//! BLAKE3 is fast because it hashes many chunks of 1 KiB at once, as many as the machine's vectors have lanes. A
//! content of 10 KiB has ten chunks, which is eight and two for AVX-512: it costs twice as much as 16 KiB. The first
//! chunks of sixteen contents, then their second ones, and so on, fill all lanes.
//!
//! The tree is that of the BLAKE3 paper, section 2: chunks (2.4) under parents (2.5), where the left subtree is the
//! largest power of two of chunks; pairing neighbours level by level, an odd one waiting for the next, gives the same.
//! `blake3::platform` does the compressions. It is outside the crate's promise of compatibility, so `Cargo.toml` names
//! the minor version; the tests compare with `blake3::hash`.

use blake3::hazmat::HasherExt;
use blake3::platform::Platform;
use blake3::{BLOCK_LEN, CHUNK_LEN, IncrementCounter, OUT_LEN};

use super::Root;

/// Contents at once: the lanes of the widest vectors.
const LANES: usize = 16;
/// With fewer, one content after the other is as good. Those that have a chunk for each lane need all lanes.
const LANES_LEAST: usize = 8;
/// Chunks of the longest content that is not better hashed by itself.
const CHUNKS_MAX: usize = 32;

/// Table 1 of the paper.
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
/// Table 3 of the paper.
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;

type Value = [u8; OUT_LEN];

/// The root of each of these contents.
pub(super) fn roots(contents: &[&[u8]]) -> Vec<Root> {
    let mut roots = vec![Root([0; OUT_LEN]); contents.len()];
    let chunks = |&index: &usize| contents[index].len().div_ceil(CHUNK_LEN);
    let (mut small, alone): (Vec<usize>, Vec<usize>) =
        (0..contents.len()).partition(|index| (2..=CHUNKS_MAX).contains(&chunks(index)));
    for index in alone {
        roots[index] = Root::of(contents[index]);
    }
    // Of about one length together, or most lanes are empty at the end of the longest.
    small.sort_unstable_by_key(|&index| contents[index].len());
    let mut rest = small.as_slice();
    while let Some(shortest) = rest.first() {
        let is_near = |index: &&usize| chunks(index) <= 2 * chunks(shortest);
        let count = rest.iter().take(LANES).take_while(is_near).count();
        let (lanes, others) = rest.split_at(count);
        rest = others;
        if lanes.len() < if chunks(shortest) < LANES { LANES_LEAST } else { LANES } {
            lanes.iter().for_each(|&index| roots[index] = Root::of(contents[index]));
            continue;
        }
        let near: Vec<&[u8]> = lanes.iter().map(|&index| contents[index]).collect();
        for (&index, root) in lanes.iter().zip(together(&near)) {
            roots[index] = root;
        }
    }
    roots
}

/// The roots of contents of at least two chunks.
fn together(contents: &[&[u8]]) -> Vec<Root> {
    let platform = Platform::detect();
    // The chaining values of each content's subtrees, from the left.
    let mut values: Vec<Vec<Value>> = contents.iter().map(|_| Vec::with_capacity(CHUNKS_MAX)).collect();
    for chunk in 0.. {
        let whole = values
            .iter_mut()
            .zip(contents)
            .filter_map(|(lane, content)| Some((lane, content.get(chunk * CHUNK_LEN..)?.first_chunk::<CHUNK_LEN>()?)));
        let (lanes, inputs): (Vec<_>, Vec<_>) = whole.unzip();
        if inputs.is_empty() {
            break;
        }
        let hashed = hash_many(platform, &inputs, chunk as u64, (0, CHUNK_START, CHUNK_END));
        lanes.into_iter().zip(hashed).for_each(|(lane, value)| lane.push(value));
    }
    for (lane, content) in values.iter_mut().zip(contents) {
        let begun = lane.len() * CHUNK_LEN;
        if begun < content.len() {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(begun as u64);
            lane.push(hasher.update(&content[begun..]).finalize_non_root());
        }
    }
    while values.iter().any(|lane| lane.len() > 2) {
        let pairs: Vec<_> = values.iter().filter(|lane| lane.len() > 2).flat_map(|lane| pairs(lane)).collect();
        let mut parents = hash_many(platform, &pairs, 0, (PARENT, 0, 0)).into_iter();
        for lane in values.iter_mut().filter(|lane| lane.len() > 2) {
            let odd = lane.last().copied().filter(|_| lane.len() % 2 == 1);
            let paired = lane.len() / 2;
            lane.clear();
            lane.extend(parents.by_ref().take(paired));
            lane.extend(odd);
        }
    }
    let tops: Vec<_> = values.iter().flat_map(|lane| pairs(lane)).collect();
    hash_many(platform, &tops, 0, (PARENT | ROOT, 0, 0)).into_iter().map(Root).collect()
}

/// The blocks of the parents above these subtrees, the odd one left out.
fn pairs(values: &[Value]) -> &[[u8; BLOCK_LEN]] {
    values.as_flattened().as_chunks().0
}

/// Hashes inputs of whole blocks, with flags for all of their blocks, the first and the last.
fn hash_many<const N: usize>(
    platform: Platform,
    inputs: &[&[u8; N]],
    counter: u64,
    (all, first, last): (u8, u8, u8),
) -> Vec<Value> {
    let mut values = vec![[0; OUT_LEN]; inputs.len()];
    let out = values.as_flattened_mut();
    platform.hash_many(inputs, &IV, counter, IncrementCounter::No, all, first, last, out);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Contents of these lengths, each with other bytes.
    #[track_caller]
    fn check(lengths: &[usize]) {
        let bytes: Vec<u8> = (0..).map(|at: u32| at.wrapping_mul(0x9e37_79b9).to_be_bytes()[0]).take(80_000).collect();
        let contents: Vec<&[u8]> = lengths.iter().enumerate().map(|(index, len)| &bytes[7 * index..][..*len]).collect();
        let alone: Vec<Root> = contents.iter().map(|content| Root::of(content)).collect();
        assert_eq!(roots(&contents), alone, "{lengths:?}");
    }

    #[test]
    fn roots_are_those_of_each_content_alone() {
        check(&[]);
        for len in (0..=CHUNKS_MAX * CHUNK_LEN + 1).step_by(509).chain((0..40).map(|chunks| chunks * CHUNK_LEN)) {
            for count in [1, LANES_LEAST - 1, LANES_LEAST, 7, LANES, LANES + 1] {
                check(&vec![len; count]);
                // Each with a tail and a number of chunks of its own.
                check(&(0..count).map(|index| len + 131 * index).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn lengths_come_in_any_order_and_far_apart() {
        let mut state = 12_345_u64;
        for _ in 0..200 {
            let lengths = (0..64).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let bits = (state >> 33) as usize;
                bits % (1 << (bits % 17))
            });
            check(&lengths.collect::<Vec<_>>());
        }
    }
}
