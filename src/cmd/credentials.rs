//! Credentials for registries, as commands are given them.

use super::server::{Failure, doing};
use edge_image::{Credentials, Keyring, Reference};
use std::io;
use std::path::PathBuf;

/// `USER:PASSWORD`; a password may hold colons.
pub(crate) fn parse(text: &str) -> Result<Credentials, &'static str> {
    match text.split_once(':') {
        Some((name, password)) if !name.is_empty() => {
            Ok(Credentials::Basic { username: name.to_owned(), password: password.to_owned() })
        }
        _ => Err("is not USER:PASSWORD"),
    }
}

/// What to try for an image, in this order: what was given, or what docker's configuration of this user has for it.
pub(crate) fn find(given: Option<Credentials>, reference: &Reference) -> Result<Vec<Credentials>, Failure> {
    if let Some(credentials) = given {
        return Ok(vec![credentials]);
    }
    let mut keyring = Keyring::new();
    if let Some((path, json)) = docker_config()? {
        keyring.add(&path.to_string_lossy(), &json).map_err(doing("reading credentials"))?;
    }
    Ok(keyring.lookup(reference))
}

/// Docker's configuration of this user, if there is one.
fn docker_config() -> Result<Option<(PathBuf, Vec<u8>)>, Failure> {
    let directory = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")));
    let Some(path) = directory.map(|d| d.join("config.json")) else { return Ok(None) };
    match std::fs::read(&path) {
        Ok(json) => Ok(Some((path, json))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(doing(format!("reading {}", path.display()))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_may_hold_colons() {
        assert!(
            matches!(parse("anna:a:b"), Ok(Credentials::Basic { username, password }) if username == "anna" && password == "a:b")
        );
        assert!(parse("anna").is_err() && parse(":secret").is_err());
    }
}
