//! Who of those that change objects is asked once more, because others have changed the object after him.

use edge_api::Object;
use std::collections::BTreeSet;

/// What is known of one write's first round, for its second. Numbers are places in the set of those who are asked.
#[derive(Debug, Default)]
pub(super) struct Again {
    /// Asked, and to be asked again should anybody change the object from here on.
    asked: BTreeSet<usize>,
    /// To be asked again.
    due: BTreeSet<usize>,
    /// The object at the end of the first round.
    last: Option<Object>,
    is_second: bool,
}

impl Again {
    /// Begins a round.
    pub(super) fn begin(&mut self, object: Option<&Object>) {
        if self.is_second && self.last.as_ref() != object {
            self.due.append(&mut self.asked);
        }
    }

    /// Whether it is one's turn: in the first round it is everybody's.
    pub(super) fn is_due(&self, place: usize) -> bool {
        !self.is_second || self.due.contains(&place)
    }

    /// Somebody has been asked.
    pub(super) fn answered(&mut self, place: usize, has_changed: bool, is_asked_again: bool) {
        if has_changed {
            self.due.append(&mut self.asked);
        }
        if is_asked_again {
            self.asked.insert(place);
        }
    }

    /// Ends the first round.
    pub(super) fn end(&mut self, object: Option<&Object>) {
        if !self.asked.is_empty() {
            self.last = object.cloned();
        }
        self.is_second = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds over three, of which all but the last ask for another turn: who changes the object in the first one, whether somebody else
    /// does between the two, and who is asked in the second one.
    #[test]
    fn who_is_asked_again() {
        for (changes, between, second) in [
            ([false, false, false], false, vec![]),
            // nobody sees his own change
            ([true, false, false], false, vec![]),
            ([false, true, false], false, vec![0]),
            ([false, false, true], false, vec![0, 1]),
            ([true, true, true], false, vec![0, 1]),
            ([false, false, false], true, vec![0, 1]),
            ([true, false, false], true, vec![0, 1]),
        ] {
            let mut again = Again::default();
            let mut object = Object::default();
            again.begin(Some(&object));
            for (i, has_changed) in changes.into_iter().enumerate() {
                assert!(again.is_due(i));
                again.answered(i, has_changed, i < 2);
            }
            again.end(Some(&object));
            if between {
                object.set_meta("name", "x");
            }
            again.begin(Some(&object));
            let due: Vec<usize> = (0..3).filter(|i| again.is_due(*i)).collect();
            assert_eq!(due, second, "{changes:?} {between}");
        }
    }
}
