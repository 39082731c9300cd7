#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;

fn names(extra: &[&str]) -> ServerNames {
    let extra: Vec<String> = extra.iter().map(|s| (*s).to_owned()).collect();
    ServerNames::new("cluster.local", &["10.43.0.1".parse().unwrap()], &extra)
}

#[test]
fn renewed_when_it_ends_soon_or_names_change() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(dir.path(), "server-ca").unwrap();
    let path = dir.path().join("serving.pem");
    let first = Identity::server(&path, &authority, &names(&[])).unwrap();
    let again = Identity::server(&path, &authority, &names(&[])).unwrap();
    assert_eq!(first.certificate(), again.certificate());
    let other = Identity::server(&path, &authority, &names(&["example.org"])).unwrap();
    assert_ne!(first.certificate(), other.certificate());

    let wanted = names(&["example.org"]);
    let purpose = Purpose::Server(&wanted);
    let end = plausible_now() + DAY * LIFETIME_DAYS;
    assert!(is_current(other.certificate(), &purpose, end - DAY * (RENEW_DAYS + 1)));
    assert!(!is_current(other.certificate(), &purpose, end - DAY * (RENEW_DAYS - 1)));
}

#[test]
fn renewed_when_the_authority_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.pem");
    let old = Authority::load_or_create(dir.path(), "old-ca").unwrap();
    let new = Authority::load_or_create(dir.path(), "new-ca").unwrap();
    let first = Identity::client(&path, &old, &ClientName::admin()).unwrap();
    let second = Identity::client(&path, &new, &ClientName::admin()).unwrap();
    assert_ne!(first.certificate(), second.certificate());
    let third = Identity::client(&path, &new, &ClientName::node("n")).unwrap();
    assert_ne!(second.certificate(), third.certificate());
}

#[test]
fn damaged_files_are_reported_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(dir.path(), "ca").unwrap();
    let path = dir.path().join("admin.pem");
    drop(Identity::client(&path, &authority, &ClientName::admin()).unwrap());
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(37) {
        std::fs::write(&path, &whole[..length]).unwrap();
        match Identity::client(&path, &authority, &ClientName::admin()) {
            Err(error) => {
                assert!(error.to_string().contains("admin.pem"), "{error}");
                assert_eq!(std::fs::read(&path).unwrap().len(), length);
            }
            // Cut inside the authority's certificate, at the end of the file: the key and the certificate are whole.
            Ok(_) => assert!(length > whole.len() - authority.pem().len() - 40, "cut at {length}"),
        }
    }
}
