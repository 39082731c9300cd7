//! From security contexts to what the runtime enforces. Pure, but for the profile file and the users of the image.

use edge_runtime::spec::{ProcMount, Seccomp, Security, User};
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext};
use std::path::{Path, PathBuf};

/// Why a container must not run as described; the texts are the kubelet's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecurityError {
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    RunAsRoot { pod: String, container: String },
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageRunsAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    NonNumericUser { user: String, pod: String, container: String },
    #[error("{what} {value} is out of range")]
    OutOfRange { what: &'static str, value: i64 },
    #[error("cannot load seccomp profile {path}")]
    Profile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    User(#[from] edge_runtime::Error),
}

fn pod_context(pod: &Pod) -> Option<&PodSecurityContext> {
    pod.spec.as_ref().and_then(|s| s.security_context.as_ref())
}

fn id(what: &'static str, value: i64) -> Result<u32, SecurityError> {
    u32::try_from(value).map_err(|_| SecurityError::OutOfRange { what, value })
}

/// The group that owns the pod's volumes.
pub(crate) fn fs_group(pod: &Pod) -> Option<u32> {
    pod_context(pod).and_then(|c| c.fs_group).and_then(|g| u32::try_from(g).ok())
}

/// Whether a volume whose root already is the group's is left alone (`fsGroupChangePolicy: OnRootMismatch`).
pub(crate) fn changes_group_if_needed(pod: &Pod) -> bool {
    pod_context(pod).and_then(|c| c.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
}

/// Whom a container runs as: its context, else the pod's, else the image. Reads the image's `/etc/passwd`.
///
/// `layers` are from the bottom to the top.
pub(crate) fn user(
    pod: &Pod,
    container: &Container,
    image_user: &str,
    layers: &[PathBuf],
) -> Result<User, SecurityError> {
    let own = container.security_context.as_ref();
    let shared = pod_context(pod);
    let run_as = own.and_then(|c| c.run_as_user).or_else(|| shared.and_then(|c| c.run_as_user));
    let group = own.and_then(|c| c.run_as_group).or_else(|| shared.and_then(|c| c.run_as_group));
    verify_non_root(pod, container, run_as, image_user)?;
    let group = group.map(|g| id("runAsGroup", g)).transpose()?;
    let mut user = match run_as {
        Some(uid) => edge_runtime::users::resolve_uid(layers, id("runAsUser", uid)?, group)?,
        None => {
            let mut user = edge_runtime::users::resolve(layers, image_user)?;
            if let Some(group) = group {
                user.gid = group;
            }
            user
        }
    };
    let strict = shared.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict");
    if strict {
        user.additional_gids.clear();
    }
    for group in shared.and_then(|c| c.supplemental_groups.as_deref()).unwrap_or_default() {
        user.additional_gids.push(id("supplementalGroups", *group)?);
    }
    user.additional_gids.sort_unstable();
    user.additional_gids.dedup();
    Ok(user)
}

fn verify_non_root(
    pod: &Pod,
    container: &Container,
    run_as: Option<i64>,
    image_user: &str,
) -> Result<(), SecurityError> {
    let own = container.security_context.as_ref().and_then(|c| c.run_as_non_root);
    if !own.or_else(|| pod_context(pod).and_then(|c| c.run_as_non_root)).unwrap_or(false) {
        return Ok(());
    }
    let meta = &pod.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let pod = format!("{name}_{namespace}({})", meta.uid.as_deref().unwrap_or_default());
    let container = container.name.clone();
    let image_user = image_user.split(':').next().unwrap_or_default();
    match (run_as, image_user.parse::<u32>()) {
        (Some(0), _) => Err(SecurityError::RunAsRoot { pod, container }),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => Err(SecurityError::ImageRunsAsRoot { pod, container }),
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) if image_user.is_empty() => Err(SecurityError::ImageRunsAsRoot { pod, container }),
        (None, Err(_)) => Err(SecurityError::NonNumericUser { user: image_user.to_owned(), pod, container }),
    }
}

/// Privileges of a container. Profiles of type `Localhost` are files below `profiles`.
pub(crate) fn security(pod: &Pod, container: &Container, profiles: &Path) -> Result<Security, SecurityError> {
    let own = container.security_context.as_ref();
    let capabilities = own.and_then(|c| c.capabilities.as_ref());
    let privileged = own.and_then(|c| c.privileged).unwrap_or(false);
    let profile = own
        .and_then(|c| c.seccomp_profile.as_ref())
        .or_else(|| pod_context(pod).and_then(|c| c.seccomp_profile.as_ref()));
    let unmasked = own.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked");
    Ok(Security {
        privileged,
        add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
        drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
        read_only_rootfs: own.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        no_new_privileges: no_new_privileges(own, privileged),
        seccomp: if privileged { Seccomp::Unconfined } else { seccomp(profile, profiles)? },
        proc_mount: if unmasked { ProcMount::Unmasked } else { ProcMount::Default },
    })
}

fn no_new_privileges(context: Option<&SecurityContext>, privileged: bool) -> bool {
    let allowed = context.and_then(|c| c.allow_privilege_escalation).unwrap_or(true);
    // who already has every privilege can gain none
    !allowed && !privileged
}

fn seccomp(profile: Option<&SeccompProfile>, profiles: &Path) -> Result<Seccomp, SecurityError> {
    // as with the kubelet's default of `seccompDefault: false`, no profile is no filter
    let Some(profile) = profile else { return Ok(Seccomp::Unconfined) };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
        "Localhost" => {
            let name = profile.localhost_profile.as_deref().unwrap_or_default();
            let path = profiles.join(name);
            let load = || -> std::io::Result<serde_json::Value> {
                let plain = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
                if !plain || name.is_empty() {
                    return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a relative path"));
                }
                Ok(serde_json::from_slice(&std::fs::read(&path)?)?)
            };
            load().map(Seccomp::Localhost).map_err(|source| SecurityError::Profile { path: path.clone(), source })
        }
        _ => Ok(Seccomp::Unconfined),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn pod(pod_context: Value, context: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"securityContext": pod_context, "containers": [{"name": "c", "securityContext": context}]},
        }))
        .unwrap()
    }

    fn user_of(pod: &Pod, image_user: &str) -> Result<User, SecurityError> {
        user(pod, &pod.spec.as_ref().unwrap().containers[0], image_user, &[])
    }

    #[test]
    fn the_container_wins_over_the_pod_and_the_pod_over_the_image() {
        let both =
            pod(json!({"runAsUser": 5, "runAsGroup": 6, "supplementalGroups": [9, 8, 9]}), json!({"runAsUser": 7}));
        let user = user_of(&both, "1:2").unwrap();
        assert_eq!((user.uid, user.gid, user.additional_gids), (7, 6, vec![8, 9]));
        let image = user_of(&pod(json!({}), json!({})), "1:2").unwrap();
        assert_eq!((image.uid, image.gid), (1, 2));
        assert!(user_of(&pod(json!({"runAsUser": -1}), json!({})), "").is_err());
        assert!(user_of(&pod(json!({}), json!({})), "nobody-knows").is_err());
    }

    #[test]
    fn non_root_is_enforced_with_the_kubelets_words() {
        let non_root = |user: Option<i64>| pod(json!({"runAsNonRoot": true}), json!({"runAsUser": user}));
        let text = |user, image| user_of(&non_root(user), image).unwrap_err().to_string();
        assert_eq!(
            text(None, ""),
            "container has runAsNonRoot and image will run as root (pod: \"p_ns(u)\", container: c)"
        );
        assert!(text(None, "0:5").contains("image will run as root"));
        assert!(text(Some(0), "5").starts_with("container's runAsUser breaks non-root policy"));
        assert!(text(None, "app").contains("non-numeric user (app), cannot verify user is non-root"));
        assert!(user_of(&non_root(None), "5").is_ok());
        assert!(user_of(&non_root(Some(5)), "root").is_ok());
    }

    #[test]
    fn seccomp_profiles_cannot_be_read_from_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("p.json"), "{\"defaultAction\": \"SCMP_ACT_LOG\"}").unwrap();
        std::fs::write(dir.path().join("bad.json"), "{").unwrap();
        let of = |name: &str| {
            let pod = pod(json!({"seccompProfile": {"type": "Localhost", "localhostProfile": name}}), json!({}));
            security(&pod, &pod.spec.as_ref().unwrap().containers[0], dir.path()).map(|s| s.seccomp)
        };
        assert!(matches!(of("p.json").unwrap(), Seccomp::Localhost(v) if v["defaultAction"] == "SCMP_ACT_LOG"));
        for name in ["../p.json", "/etc/passwd", "", "none.json", "bad.json"] {
            assert!(of(name).is_err(), "{name}");
        }
    }
}
