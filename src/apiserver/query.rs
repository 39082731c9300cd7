//! Query parameters, read as Kubernetes' generated conversions read them.
//!
//! Unknown parameters are ignored; a known one that cannot be read is a 400. Where a parameter is repeated, scalars take
//! the first value, lists (`command`, `dryRun`) take all.

use edge_api::Status;
use edge_api::selector::{FieldSelector, LabelSelector};
use edge_schema::validate::FieldValidation;
use std::borrow::Cow;

/// The decoded pairs of a query.
#[derive(Debug, Default)]
pub(crate) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Splits and decodes; malformed percent encodings stay as they are.
    pub(crate) fn parse(query: &'a str) -> Self {
        if query.is_empty() {
            return Self::default();
        }
        Self(form_urlencoded::parse(query.as_bytes()).collect())
    }

    /// The first value of a parameter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_ref())
    }

    /// All values of a parameter.
    pub(crate) fn all<'q>(&'q self, name: &'q str) -> impl Iterator<Item = &'q str> {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_ref())
    }

    /// A boolean: present means true, unless it says `false` or `0`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| v != "0" && !v.eq_ignore_ascii_case("false"))
    }

    /// A boolean that may be absent.
    pub(crate) fn optional_flag(&self, name: &str) -> Option<bool> {
        self.get(name).map(|_| self.flag(name))
    }

    /// An integer.
    ///
    /// # Errors
    /// 400 when it is none.
    pub(crate) fn int(&self, name: &str) -> Result<Option<i64>, Status> {
        let Some(text) = self.get(name).filter(|v| !v.is_empty()) else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
    }

    /// `labelSelector`.
    ///
    /// # Errors
    /// 400 when it cannot be parsed.
    pub(crate) fn label_selector(&self) -> Result<LabelSelector, Status> {
        match self.get("labelSelector") {
            None | Some("") => Ok(LabelSelector::everything()),
            Some(text) => LabelSelector::parse(text)
                .map_err(|e| Status::bad_request(format!("unable to parse labelSelector {text:?}: {e}"))),
        }
    }

    /// `fieldSelector`.
    ///
    /// # Errors
    /// 400 when it cannot be parsed.
    pub(crate) fn field_selector(&self) -> Result<FieldSelector, Status> {
        match self.get("fieldSelector") {
            None | Some("") => Ok(FieldSelector::default()),
            Some(text) => FieldSelector::parse(text)
                .map_err(|e| Status::bad_request(format!("unable to parse fieldSelector {text:?}: {e}"))),
        }
    }

    /// Whether `dryRun=All` is asked for.
    ///
    /// # Errors
    /// 422 for any other value.
    pub(crate) fn dry_run(&self, options_kind: &str) -> Result<bool, Status> {
        dry_run_of(self.all("dryRun"), options_kind)
    }

    /// `fieldValidation`; absent means `Warn`.
    ///
    /// # Errors
    /// 422 for an unknown value.
    pub(crate) fn field_validation(&self, options_kind: &str) -> Result<FieldValidation, Status> {
        let text = self.get("fieldValidation").unwrap_or_default();
        FieldValidation::parse(text)
            .ok_or_else(|| not_supported(options_kind, "fieldValidation", text, &["Ignore", "Warn", "Strict"]))
    }
}

/// Whether the values of `dryRun` ask for a dry run.
///
/// # Errors
/// 422 for any value but `All`.
pub(crate) fn dry_run_of<'v>(values: impl Iterator<Item = &'v str>, options_kind: &str) -> Result<bool, Status> {
    let mut dry = false;
    for v in values.filter(|v| !v.is_empty()) {
        if v != "All" {
            return Err(not_supported(options_kind, "dryRun", v, &["All"]));
        }
        dry = true;
    }
    Ok(dry)
}

fn not_supported(options_kind: &str, field: &str, value: &str, supported: &[&str]) -> Status {
    let mut errors = edge_api::field::ErrorList::new();
    errors.not_supported(&edge_api::field::Path::new(field), &value.into(), supported);
    let kind = edge_api::GroupKind { group: "meta.k8s.io".into(), kind: options_kind.into() };
    Status::invalid(&kind, "", &errors)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn reads_scalars_lists_and_flags() {
        let q = Query::parse("a=1&command=sh&command=-c&command=echo+a%20b&watch&pretty=false&limit=5&x=%zz");
        assert_eq!(q.get("a"), Some("1"));
        assert_eq!(q.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a b"]);
        assert!(q.flag("watch") && !q.flag("pretty") && !q.flag("absent"));
        assert_eq!(q.int("limit").unwrap(), Some(5));
        assert_eq!(q.int("absent").unwrap(), None);
        assert_eq!(Query::parse("limit=abc").int("limit").unwrap_err().code, 400);
    }

    #[test]
    fn options_are_strict() {
        assert!(Query::parse("dryRun=All").dry_run("CreateOptions").unwrap());
        let e = Query::parse("dryRun=Some").dry_run("CreateOptions").unwrap_err();
        assert_eq!(e.code, 422);
        assert_eq!(
            e.message,
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\""
        );
        assert!(Query::parse("fieldValidation=strict").field_validation("PatchOptions").is_err());
        assert_eq!(
            Query::parse("fieldValidation=Strict").field_validation("PatchOptions").unwrap(),
            FieldValidation::Strict
        );
        assert_eq!(Query::parse("labelSelector=a%20in%20(").label_selector().unwrap_err().code, 400);
        assert_eq!(Query::parse("fieldSelector=abc").field_selector().unwrap_err().code, 400);
    }
}
