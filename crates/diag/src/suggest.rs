//! "Did you mean".

/// The candidate that differs least from `word` (case aside), when the difference is small enough to be a slip:
/// at most a third of its length, at least one edit. Ties go to the first.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower: Vec<char> = word.to_lowercase().chars().take(200).collect();
    let limit = (lower.len() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| {
            (distance(&lower, &candidate.to_lowercase().chars().take(200).collect::<Vec<_>>()), candidate)
        })
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance: edits and swaps of neighbours.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let mut best =
                (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + usize::from(a[i - 1] != b[j - 1]));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = last;
        last = row;
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_slips_and_nothing_else() {
        let words = ["FROM", "COPY", "RUN", "ENTRYPOINT"];
        assert_eq!(nearest("CPOY", words), Some("COPY"));
        assert_eq!(nearest("entrypiont", words), Some("ENTRYPOINT"));
        assert_eq!(nearest("RUM", words), Some("RUN"));
        assert_eq!(nearest("HELLO", words), None);
        assert_eq!(nearest("", words), None);
    }
}
