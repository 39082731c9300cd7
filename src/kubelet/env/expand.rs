//! `$(NAME)` in commands, arguments, values of variables and subpaths.

/// Replaces every `$(NAME)` whose name `lookup` knows; unknown ones stay as they are. `$$` is a plain dollar sign, so that
/// `$$(NAME)` is never replaced.
pub(crate) fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => result.push_str(value),
                None => {
                    result.push_str("$(");
                    result.push_str(name);
                    result.push(')');
                }
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_values(text: &str) -> String {
        expand(text, |name| match name {
            "A" => Some("1"),
            "EMPTY" => Some(""),
            "B.C" => Some("x$(A)"),
            _ => None,
        })
    }

    #[test]
    fn known_names_are_replaced_and_everything_else_stays() {
        for (text, expected) in [
            ("$(A)", "1"),
            ("a$(A)b$(A)", "a1b1"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$", "$$"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$(EMPTY)", ""),
            ("$()", "$()"),
            ("$(B.C)", "x$(A)"),
            ("$($(A))", "$($(A))"),
            ("", ""),
            ("größe $(A) €", "größe 1 €"),
        ] {
            assert_eq!(with_values(text), expected, "{text:?}");
        }
    }

    #[test]
    fn any_text_is_survived() {
        let alphabet = ['$', '(', ')', 'A', 'é', ' '];
        let mut seed = 3_u64;
        for _ in 0..2000 {
            let text: String = (0..12)
                .map(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    alphabet[(seed >> 33) as usize % alphabet.len()]
                })
                .collect();
            with_values(&text);
        }
    }
}
