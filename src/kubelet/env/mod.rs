//! The environment of a container: variables, expanded command, names.
//!
//! Comes in: the pod, its configMaps and secrets, the services of its namespace, the image's own variables. Goes out:
//! names and values in the order in which they are set.

pub(crate) mod expand;
pub(crate) mod fields;
pub(crate) mod resolv;
pub(crate) mod services;

use crate::pods::objects::{PodObjects, Unanswered};
use crate::pods::shared::PodShared;
use edge_client::ResourceExt;
use expand::expand;
use fields::{Facts, FieldError, pod_field, resource_field};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Search path of commands when the image names none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a container's environment cannot be made: its status becomes `CreateContainerConfigError` with this text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { kind: &'static str, namespace: String, name: String, key: String },
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("value of key {0} is no text")]
    NotText(String),
    #[error("environment variables from files are not supported by edge")]
    FileKey,
}

/// A container's variables as the API describes them, without those of its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Variables(pub(crate) BTreeMap<String, String>);

impl Variables {
    /// Expands `$(NAME)` in a text.
    pub(crate) fn expand(&self, text: &str) -> String {
        expand(text, |name| self.0.get(name).map(String::as_str))
    }

    /// All variables of the process: the image's first, then these, and what every process needs.
    pub(crate) fn process(&self, image: &[String], hostname: &str, home: &str) -> Vec<(String, String)> {
        self.all(image, hostname, &[("PATH", DEFAULT_PATH), ("HOME", home)])
    }

    /// All variables of a WebAssembly program. It cannot execute anything, so it gets no search path; that it is in a directory it
    /// learns from `PWD` alone.
    pub(crate) fn program(&self, image: &[String], hostname: &str, directory: &Path) -> Vec<(String, String)> {
        let directory = directory.to_str().filter(|path| !path.is_empty()).unwrap_or("/");
        self.all(image, hostname, &[("PWD", directory)])
    }

    fn all(&self, image: &[String], hostname: &str, defaults: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        let mut set = |name: &str, value: &str, replace: bool| match all.iter_mut().find(|(n, _)| n == name) {
            Some(known) if replace => value.clone_into(&mut known.1),
            Some(_) => {}
            None => all.push((name.to_owned(), value.to_owned())),
        };
        for variable in image {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            set(name, value, true);
        }
        if !hostname.is_empty() {
            set("HOSTNAME", hostname, true);
        }
        for (name, value) in &self.0 {
            set(name, value, true);
        }
        for (name, value) in defaults {
            set(name, value, false);
        }
        all
    }
}

/// The objects that were read for one container.
#[derive(Default)]
struct Read {
    config_maps: HashMap<String, Option<BTreeMap<String, Vec<u8>>>>,
    secrets: HashMap<String, Option<BTreeMap<String, Vec<u8>>>>,
}

impl Read {
    async fn config_map(
        &mut self,
        objects: &PodObjects,
        name: &str,
    ) -> Result<Option<&BTreeMap<String, Vec<u8>>>, EnvError> {
        if !self.config_maps.contains_key(name) {
            let object = objects.config_map(name).await?;
            let data = object.map(|o| crate::volumes::payload::config_map_data(&o));
            self.config_maps.insert(name.to_owned(), data);
        }
        Ok(self.config_maps.get(name).and_then(Option::as_ref))
    }

    async fn secret(
        &mut self,
        objects: &PodObjects,
        name: &str,
    ) -> Result<Option<&BTreeMap<String, Vec<u8>>>, EnvError> {
        if !self.secrets.contains_key(name) {
            let object = objects.secret(name).await?;
            let data = object.map(|o| crate::volumes::payload::secret_data(&o));
            self.secrets.insert(name.to_owned(), data);
        }
        Ok(self.secrets.get(name).and_then(Option::as_ref))
    }
}

/// The variables of services, those of the pod's last start where no server answers.
async fn service_variables(shared: &PodShared, links: bool) -> BTreeMap<String, String> {
    match shared.cx.services_for(&shared.namespace, links).await {
        Some(known) => {
            let variables = services::variables(known.iter().map(|s| &**s));
            shared.kept.put_services(&variables);
            variables
        }
        None => {
            tracing::info!(pod = shared.name, "no server answers, using the services that were known before");
            shared.kept.services()
        }
    }
}

fn text(name: &str, value: &[u8]) -> Result<String, EnvError> {
    String::from_utf8(value.to_vec()).map_err(|_| EnvError::NotText(name.to_owned()))
}

/// The variables of a container.
pub(crate) async fn variables(
    shared: &PodShared,
    pod: &Pod,
    container: &Container,
    facts: &Facts,
) -> Result<Variables, EnvError> {
    let objects = &*shared.objects;
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let service_variables = service_variables(shared, links).await;
    let mut read = Read::default();
    let mut result = BTreeMap::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional, data) = if let Some(source) = &from.config_map_ref {
            let data = read.config_map(objects, &source.name).await?;
            ("configmap", &source.name, source.optional, data)
        } else if let Some(source) = &from.secret_ref {
            ("secret", &source.name, source.optional, read.secret(objects, &source.name).await?)
        } else {
            continue;
        };
        match data {
            None if optional.unwrap_or(false) => {}
            None => return Err(EnvError::NotFound { kind, name: name.clone() }),
            Some(data) => {
                for (key, value) in data {
                    result.insert(format!("{prefix}{key}"), text(key, value)?);
                }
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => {
                let known = |name: &str| {
                    let known: Option<&String> = result.get(name).or_else(|| service_variables.get(name));
                    known.map(String::as_str)
                };
                Some(expand(value, known))
            }
            (_, Some(source)) => value_from(objects, pod, container, source, facts, &mut read).await?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            result.insert(variable.name.clone(), value);
        }
    }
    for (name, value) in service_variables {
        result.entry(name).or_insert(value);
    }
    Ok(Variables(result))
}

async fn value_from(
    objects: &PodObjects,
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    facts: &Facts,
    read: &mut Read,
) -> Result<Option<String>, EnvError> {
    let namespace = pod.namespace().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        return Ok(Some(pod_field(pod, &field.field_path, facts)?));
    }
    if let Some(resource) = &source.resource_field_ref {
        return Ok(Some(resource_field(pod, Some(container), resource, facts)?));
    }
    let (kind, title, name, key, optional, data) = if let Some(s) = &source.config_map_key_ref {
        ("configmap", "ConfigMap", &s.name, &s.key, s.optional, read.config_map(objects, &s.name).await?)
    } else if let Some(s) = &source.secret_key_ref {
        ("secret", "Secret", &s.name, &s.key, s.optional, read.secret(objects, &s.name).await?)
    } else if source.file_key_ref.is_some() {
        return Err(EnvError::FileKey);
    } else {
        return Ok(None);
    };
    let optional = optional.unwrap_or(false);
    match data.map(|data| data.get(key)) {
        Some(Some(value)) => Ok(Some(text(key, value)?)),
        _ if optional => Ok(None),
        None => Err(EnvError::NotFound { kind, name: name.clone() }),
        Some(None) => Err(EnvError::NoKey { kind: title, namespace, name: name.clone(), key: key.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_gets_the_images_variables_then_its_own() {
        let own = BTreeMap::from([("A".to_owned(), "own".to_owned()), ("PATH".to_owned(), "/own".to_owned())]);
        let image = ["A=image".to_owned(), "B=1=2".to_owned(), "C".to_owned()];
        let process = Variables(own).process(&image, "host", "/root");
        let get = |name: &str| process.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("A"), Some("own"));
        assert_eq!(get("B"), Some("1=2"));
        assert_eq!(get("C"), Some(""));
        assert_eq!(get("PATH"), Some("/own"));
        assert_eq!((get("HOSTNAME"), get("HOME")), (Some("host"), Some("/root")));
        let names: std::collections::HashSet<_> = process.iter().map(|(n, _)| n).collect();
        assert_eq!(names.len(), process.len(), "every name once");
        let bare = Variables::default().process(&[], "", "/");
        assert_eq!(bare, [("PATH".to_owned(), DEFAULT_PATH.to_owned()), ("HOME".to_owned(), "/".to_owned())]);
    }
}
