//! The default seccomp profile: an allow list; everything else fails with EPERM.
//!
//! Comes in: the capabilities of a container. Goes out: the profile in OCI form, which libcontainer compiles and loads.

mod program;
mod syscalls;

use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

pub(crate) use program::{dense_profile, wasm_profile};

/// Flags of `clone(2)` that make namespaces, all of them.
const CLONE_NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// Address families that reach the kernel's crypto API and the hypervisor's host.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// Execution domains programs may ask for: Linux, with a few harmless bits, and "what is it now".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The default profile for a container that holds `capabilities` (named without `CAP_`).
pub(crate) fn default_profile(capabilities: &[String]) -> LinuxSeccomp {
    let holds = |name: &str| capabilities.iter().any(|capability| capability == name);
    let mut rules = vec![allow(syscalls::ALWAYS, Vec::new())];
    for (capability, names) in syscalls::BY_CAPABILITY {
        if holds(capability) {
            rules.push(allow(names, Vec::new()));
        }
    }
    for (architecture, names) in syscalls::BY_ARCHITECTURE {
        if *architecture == std::env::consts::ARCH {
            rules.push(allow(names, Vec::new()));
        }
    }
    for domain in PERSONALITIES {
        rules.push(allow(&["personality"], vec![argument(LinuxSeccompOperator::ScmpCmpEq, domain, None)]));
    }
    // Every address family but two, which takes three ranges.
    rules.push(allow(&["socket"], vec![argument(LinuxSeccompOperator::ScmpCmpLt, AF_ALG, None)]));
    rules.push(allow(&["socket"], vec![argument(LinuxSeccompOperator::ScmpCmpEq, AF_ALG + 1, None)]));
    rules.push(allow(&["socket"], vec![argument(LinuxSeccompOperator::ScmpCmpGt, AF_VSOCK, None)]));
    if !holds("SYS_ADMIN") {
        let no_namespace = argument(LinuxSeccompOperator::ScmpCmpMaskedEq, CLONE_NAMESPACE_FLAGS, Some(0));
        rules.push(allow(&["clone"], vec![no_namespace]));
        rules.push(refuse_clone3());
    }
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_default_errno_ret(Some(nix::libc::EPERM as u32));
    profile.set_architectures(Some(architectures()));
    profile.set_syscalls(Some(rules));
    profile
}

/// The flags of `clone3` are in memory, where a filter cannot look. ENOSYS makes libraries fall back to clone.
fn refuse_clone3() -> LinuxSyscall {
    let mut clone3 = rule(&["clone3"], LinuxSeccompAction::ScmpActErrno);
    clone3.set_errno_ret(Some(nix::libc::ENOSYS as u32));
    clone3
}

/// The native architecture and those whose programs the same kernel runs.
fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => vec![Arch::ScmpArchNative],
    }
}

fn rule(names: &[&str], action: LinuxSeccompAction) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect());
    rule.set_action(action);
    rule
}

fn allow(names: &[&str], arguments: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = rule(names, LinuxSeccompAction::ScmpActAllow);
    rule.set_args(Some(arguments).filter(|arguments| !arguments.is_empty()));
    rule
}

/// A condition on the first argument. For a masked comparison `value` is the mask and `value_two` what must be left.
fn argument(operator: LinuxSeccompOperator, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(0_usize).value(value).op(operator);
    let builder = match value_two {
        Some(second) => builder.value_two(second),
        None => builder,
    };
    builder.build().expect("invariant: index, value and operator are set")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &LinuxSeccomp, name: &str) -> bool {
        profile.syscalls().iter().flatten().any(|rule| {
            rule.action() == LinuxSeccompAction::ScmpActAllow
                && rule.args().is_none()
                && rule.names().iter().any(|n| n == name)
        })
    }

    #[test]
    fn capabilities_open_their_system_calls() {
        let plain = default_profile(&["CHOWN".to_owned()]);
        assert!(
            allowed(&plain, "read")
                && allowed(&plain, "execve")
                && !allowed(&plain, "mount")
                && !allowed(&plain, "reboot")
        );
        assert!(!allowed(&plain, "clone") && !allowed(&plain, "bpf"));
        let admin = default_profile(&["SYS_ADMIN".to_owned(), "SYS_BOOT".to_owned()]);
        assert!(
            allowed(&admin, "mount")
                && allowed(&admin, "reboot")
                && allowed(&admin, "clone")
                && allowed(&admin, "clone3")
        );
    }

    #[test]
    fn what_executing_a_command_needs_is_allowed() {
        let profile = default_profile(&[]);
        for name in
            ["capset", "prctl", "sendmsg", "recvmsg", "close", "fchdir", "chdir", "setgroups", "accept4", "exit_group"]
        {
            assert!(allowed(&profile, name), "{name}");
        }
    }
}
