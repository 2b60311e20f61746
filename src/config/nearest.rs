//! "Did you mean …": the known word nearest to one that is not known. Pure; called while an error is put into words.

/// The candidate that takes the fewest edits to reach, if few enough that it may be meant: one edit for three letters.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = word.chars().take(WORD_CHARS_MAX + 1).flat_map(char::to_lowercase).collect();
    if wanted.len() > WORD_CHARS_MAX {
        return None;
    }
    let edits_max = (wanted.len() / 3).clamp(1, 4);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(word.len()) <= edits_max * 4)
        .map(|candidate| (edits(&wanted, candidate), candidate))
        .filter(|&(edits, _)| edits <= edits_max)
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, candidate)| candidate)
}

/// `did you mean "x"?` or nothing.
pub(super) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, candidates).map(|near| format!("did you mean \"{near}\"?"))
}

/// Longer words are not compared: the cost grows with the square.
const WORD_CHARS_MAX: usize = 128;

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn edits(wanted: &[char], candidate: &str) -> usize {
    let other: Vec<char> = candidate.chars().flat_map(char::to_lowercase).collect();
    let mut before_last = vec![0; other.len() + 1];
    let mut last: Vec<usize> = (0..=other.len()).collect();
    let mut row = vec![0; other.len() + 1];
    for (i, a) in wanted.iter().enumerate() {
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = last[j] + usize::from(a != b);
            row[j + 1] = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && wanted[i - 1] == *b {
                row[j + 1] = row[j + 1].min(before_last[j - 1] + 1);
            }
        }
        std::mem::swap(&mut before_last, &mut last);
        std::mem::swap(&mut last, &mut row);
    }
    last[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_another_word_is_not() {
        let known = ["head_bytes_max", "target_bytes_max", "fields_max", "idle"];
        assert_eq!(nearest("head_byte_max", known), Some("head_bytes_max"));
        assert_eq!(nearest("feilds_max", known), Some("fields_max"));
        assert_eq!(nearest("Idle", known), Some("idle"));
        assert_eq!(nearest("connections", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"x".repeat(100_000), known), None);
    }
}
