//! Sets of completion indexes, written as `1,3-5,7`.

use std::fmt;

/// Indexes as ordered intervals that neither touch nor overlap; both ends belong to an interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads the form of a Job's status or success policy. What is no interval, and indexes from `completions` on, are left
    /// out.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let interval = |part: &str| -> Option<(i32, i32)> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (i32, i32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last && first >= 0 && first < completions).then_some((first, last.min(completions - 1)))
        };
        Self::from_intervals(text.split(',').filter_map(interval).collect())
    }

    fn from_intervals(mut intervals: Vec<(i32, i32)>) -> Self {
        intervals.sort_unstable();
        let mut out: Vec<(i32, i32)> = Vec::with_capacity(intervals.len());
        for (first, last) in intervals {
            match out.last_mut() {
                Some(known) if first <= known.1.saturating_add(1) => known.1 = known.1.max(last),
                _ => out.push((first, last)),
            }
        }
        Self(out)
    }

    /// These and some more.
    #[must_use]
    pub(super) fn with(&self, more: impl IntoIterator<Item = i32>) -> Self {
        Self::from_intervals(self.0.iter().copied().chain(more.into_iter().map(|i| (i, i))).collect())
    }

    /// These and those.
    #[must_use]
    pub(super) fn union(&self, other: &Self) -> Self {
        Self::from_intervals(self.0.iter().chain(&other.0).copied().collect())
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= index);
        after.checked_sub(1).and_then(|i| self.0.get(i)).is_some_and(|(_, last)| index <= *last)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many they are.
    pub(super) fn total(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// How many of these are also among the others.
    pub(super) fn overlap(&self, other: &Self) -> i32 {
        let shared = |a: &(i32, i32), b: &(i32, i32)| (a.1.min(b.1) - a.0.max(b.0) + 1).max(0);
        let (mut i, mut j, mut total) = (0, 0, 0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            total += shared(a, b);
            if a.1 < b.1 { i += 1 } else { j += 1 }
        }
        total
    }

    /// The first `count` indexes below `completions` that are not among these.
    pub(super) fn missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let mut out = Vec::new();
        let mut candidate = 0;
        let end = [(completions, completions)];
        for (first, last) in self.0.iter().chain(&end) {
            while candidate < (*first).min(completions) && out.len() < count {
                out.push(candidate);
                candidate += 1;
            }
            candidate = candidate.max(last.saturating_add(1));
        }
        out
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_writing() {
        for (text, completions, want) in [
            ("", 10, ""),
            ("1", 10, "1"),
            ("1,2", 10, "1,2"),
            ("1-3", 10, "1-3"),
            ("1,2,3,5", 10, "1-3,5"),
            ("1-3,4-6", 10, "1-6"),
            ("0,2-8", 5, "0,2-4"),
            ("7,8", 5, ""),
            ("x,1-y,3", 10, "3"),
            ("-1,5-2,3", 10, "3"),
            ("3,1-2,2-4", 10, "1-4"),
        ] {
            assert_eq!(Indexes::parse(text, completions).to_string(), want, "{text}");
        }
    }

    #[test]
    fn sets() {
        let i = Indexes::parse("1-3,7", 100);
        for (index, is_in) in [(0, false), (1, true), (2, true), (3, true), (4, false), (7, true), (8, false)] {
            assert_eq!(i.contains(index), is_in, "{index}");
        }
        assert_eq!(i.total(), 4);
        assert_eq!(i.with([4, 9, 2]).to_string(), "1-4,7,9");
        assert_eq!(i.union(&Indexes::parse("0,4-6", 100)).to_string(), "0-7");
        for (other, want) in [("", 0), ("0-100", 4), ("2-7", 3), ("4-6", 0), ("3,7", 2)] {
            assert_eq!(i.overlap(&Indexes::parse(other, 200)), want, "{other}");
            assert_eq!(Indexes::parse(other, 200).overlap(&i), want, "{other}");
        }
        for (count, completions, want) in
            [(0, 10, vec![]), (2, 10, vec![0, 4]), (9, 10, vec![0, 4, 5, 6, 8, 9]), (9, 3, vec![0])]
        {
            assert_eq!(i.missing(count, completions), want);
        }
        assert_eq!(Indexes::default().missing(2, 5), [0, 1]);
    }
}
