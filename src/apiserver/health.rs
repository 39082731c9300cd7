//! `/healthz`, `/livez`, `/readyz`: all checks, one check, in words or in one.

use crate::query::Query;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// A component of the control plane besides the API server and its store.
#[derive(Clone)]
pub struct Component {
    /// Its name in `componentstatuses`.
    pub name: &'static str,
    /// What is wrong with it at this moment; `None` when nothing is.
    pub problem: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One thing that can be well or not.
#[derive(Debug)]
pub(crate) struct Check {
    /// Name, as in `/readyz/<name>`.
    pub(crate) name: &'static str,
    /// Whether it is well.
    pub(crate) ok: bool,
}

/// Answers for `endpoint` (`healthz`, `livez` or `readyz`), about one check or (`None`) all: HTTP code and text.
///
/// `None` when there is no such check.
pub(crate) fn report(endpoint: &str, one: Option<&str>, checks: &[Check], query: &Query<'_>) -> Option<(u16, String)> {
    if let Some(name) = one {
        let check = checks.iter().find(|c| c.name == name)?;
        return Some(if check.ok {
            (200, "ok".into())
        } else {
            (500, format!("internal server error: {name} check failed\n"))
        });
    }
    let excluded = |name: &str| query.all("exclude").any(|e| e == name);
    let mut text = String::new();
    for c in checks {
        let _ = if excluded(c.name) {
            writeln!(text, "[+]{} excluded: ok", c.name)
        } else if c.ok {
            writeln!(text, "[+]{} ok", c.name)
        } else {
            writeln!(text, "[-]{} failed: reason withheld", c.name)
        };
    }
    for e in query.all("exclude").filter(|e| !checks.iter().any(|c| c.name == *e)) {
        let _ = writeln!(text, "warn: some health checks cannot be excluded: no matches for {e:?}");
    }
    let well = checks.iter().all(|c| c.ok || excluded(c.name));
    Some(match (well, query.get("verbose").is_some()) {
        (false, _) => (500, format!("{text}{endpoint} check failed\n")),
        (true, true) => (200, format!("{text}{endpoint} check passed\n")),
        (true, false) => (200, "ok".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_like_kubernetes() {
        let checks = |etcd| [Check { name: "ping", ok: true }, Check { name: "etcd", ok: etcd }];
        let get = |one, etcd, q| report("livez", one, &checks(etcd), &Query::parse(q));
        assert_eq!(get(None, true, ""), Some((200, "ok".into())));
        assert_eq!(get(None, true, "verbose"), Some((200, "[+]ping ok\n[+]etcd ok\nlivez check passed\n".into())));
        assert_eq!(
            get(None, false, ""),
            Some((500, "[+]ping ok\n[-]etcd failed: reason withheld\nlivez check failed\n".into()))
        );
        assert_eq!(get(None, false, "exclude=etcd"), Some((200, "ok".into())));
        assert_eq!(get(Some("ping"), false, ""), Some((200, "ok".into())));
        assert_eq!(get(Some("etcd"), false, "").map(|r| r.0), Some(500));
        assert_eq!(get(Some("nothing"), true, ""), None);
    }
}
