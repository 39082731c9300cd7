//! Device access with cgroup version 2, which has no device controller: a small program in the kernel decides about every
//! opening and making of a device node by the processes of a cgroup.
//!
//! Comes in: the device rules of an OCI specification. Goes out: a program, attached to a cgroup. With version 1 libcontainer
//! writes the same rules into the device controller.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use edge_sys::bpf::{Instruction, attach_cgroup_device, load_cgroup_device};
use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{Error, Result};

// What the kernel asks the program about (`struct bpf_cgroup_dev_ctx`): `access << 16 | type`, major, minor.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

// Where the program keeps it. Register 1 holds the address of the question, register 0 takes the answer.
const ANSWER: u8 = 0;
const QUESTION: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Operations of eBPF.
const LOAD_WORD: u8 = 0x61;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const MOVE: u8 = 0xb7;
const COPY_32: u8 = 0xbc;
const JUMP: u8 = 0x05;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const JUMP_IF_ANY_BIT: u8 = 0x45;
const EXIT: u8 = 0x95;

/// Puts device rules in force for a cgroup. The last one that matches an access decides; without any, it is denied.
pub(super) fn restrict(directory: &Path, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let program = program(rules)?;
    File::open(directory)
        .and_then(|cgroup| attach_cgroup_device(cgroup.as_fd(), load_cgroup_device(&program)?.as_fd()))
        .map_err(|err| Error::cgroup(directory)(io::Error::other(format!("cannot restrict devices: {err}"))))
}

/// Whether rules allow everything, so that no program is needed.
pub(super) fn allow_all(rules: &[LinuxDeviceCgroup]) -> bool {
    rules.last().is_some_and(|rule| is_for_all(rule) && rule.allow())
}

fn is_for_all(rule: &LinuxDeviceCgroup) -> bool {
    matches!(rule.typ(), None | Some(LinuxDeviceType::A))
}

/// Translates rules. The program tries them from the last to the first, and the first that matches answers.
fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Instruction>> {
    let mut code = vec![
        instruction(LOAD_WORD, TYPE, QUESTION, 0, 0),
        instruction(COPY_32, ACCESS, TYPE, 0, 0),
        instruction(AND_32, TYPE, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, QUESTION, 4, 0),
        instruction(LOAD_WORD, MINOR, QUESTION, 8, 0),
    ];
    let mut otherwise = false;
    for rule in rules.iter().rev() {
        if is_for_all(rule) {
            otherwise = rule.allow();
            break;
        }
        code.extend(translate(rule)?);
    }
    code.extend(answer(otherwise));
    Ok(code)
}

/// The conditions of one rule, each of which jumps over its answer when it does not hold.
fn translate(rule: &LinuxDeviceCgroup) -> Result<Vec<Instruction>> {
    let kind = match rule.typ() {
        Some(LinuxDeviceType::B) => BLOCK,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => CHARACTER,
        _ => return Err(Error::InvalidSpec("a device rule is for character or block devices".to_owned())),
    };
    let access = access_bits(rule.access().as_deref().unwrap_or_default())?;
    let mut code = vec![instruction(JUMP_IF_NOT_EQUAL, TYPE, 0, 0, kind)];
    if rule.allow() {
        // allowed only when nothing is asked for that the rule does not name
        code.push(instruction(JUMP_IF_ANY_BIT, ACCESS, 0, 0, !access & (MAKE | READ | WRITE)));
    } else {
        // denied as soon as something is asked for that it names
        code.push(instruction(JUMP_IF_ANY_BIT, ACCESS, 0, 1, access));
        code.push(instruction(JUMP, 0, 0, 0, 0));
    }
    for (register, number) in [(MAJOR, rule.major()), (MINOR, rule.minor())] {
        // a negative number, or none, stands for all
        let Some(number) = number.filter(|number| *number >= 0) else { continue };
        let number = i32::try_from(number)
            .map_err(|_| Error::InvalidSpec(format!("device number {number} does not fit into 31 bits")))?;
        code.push(instruction(JUMP_IF_NOT_EQUAL, register, 0, 0, number));
    }
    code.extend(answer(rule.allow()));
    let end = code.len();
    for (index, jump) in code.iter_mut().enumerate().filter(|(_, one)| is_open_jump(one)) {
        // counted from the next instruction; a rule has no more than eight
        jump.offset = (end - index - 1) as i16;
    }
    Ok(code)
}

/// A jump that has no target yet.
fn is_open_jump(one: &Instruction) -> bool {
    one.offset == 0 && matches!(one.code, JUMP | JUMP_IF_NOT_EQUAL | JUMP_IF_ANY_BIT)
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE, ANSWER, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

fn access_bits(text: &str) -> Result<i32> {
    text.chars().try_fold(0, |bits, letter| match letter {
        'r' => Ok(bits | READ),
        'w' => Ok(bits | WRITE),
        'm' => Ok(bits | MAKE),
        _ => Err(Error::InvalidSpec(format!("device access {text:?} is not made of r, w and m"))),
    })
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    let registers = if cfg!(target_endian = "little") { source << 4 | destination } else { destination << 4 | source };
    Instruction { code, registers, offset, immediate }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn rule(
        allow: bool,
        kind: LinuxDeviceType,
        major: Option<i64>,
        minor: Option<i64>,
        access: &str,
    ) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow);
        rule.set_typ(Some(kind));
        rule.set_major(major);
        rule.set_minor(minor);
        rule.set_access(Some(access.to_owned()));
        rule
    }

    /// A mount of the cgroup2 hierarchy of its own, which any machine has, whatever it uses for its services.
    struct Cgroup2 {
        mount: tempfile::TempDir,
    }

    impl Cgroup2 {
        fn new() -> Self {
            let mount = tempfile::tempdir().unwrap();
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("cgroup2"), mount.path(), Some("cgroup2"), flags, None::<&str>).unwrap();
            Self { mount }
        }

        /// Which of the lines of a script succeed inside a new cgroup with these rules.
        fn succeeding(&self, rules: &[LinuxDeviceCgroup], script: &[&str]) -> Vec<bool> {
            let cgroup = self.mount.path().join(format!("edge-devices-test-{}", std::process::id()));
            std::fs::create_dir(&cgroup).unwrap();
            restrict(&cgroup, rules).unwrap();
            let directory = tempfile::tempdir_in("/var/tmp").unwrap();
            let mut shell = Command::new("sh")
                .current_dir(directory.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            std::fs::write(cgroup.join("cgroup.procs"), shell.id().to_string()).unwrap();
            let lines: String = script.iter().map(|line| format!("({line}) 2>&- && echo y || echo n\n")).collect();
            shell.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
            let output = shell.wait_with_output().unwrap();
            std::fs::remove_dir(&cgroup).unwrap();
            String::from_utf8(output.stdout).unwrap().lines().map(|line| line == "y").collect()
        }
    }

    impl Drop for Cgroup2 {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(self.mount.path(), nix::mount::MntFlags::MNT_DETACH);
        }
    }

    #[test]
    fn the_kernel_obeys_the_rules() {
        use LinuxDeviceType::{A, B, C};
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let cgroups = Cgroup2::new();
        let script =
            ["echo x >/dev/null", ": </dev/null", ": <>/dev/null", "mknod zero c 1 5", ": <zero", "mknod loop b 7 0"];
        let nothing = cgroups.succeeding(&[], &script);
        assert_eq!(nothing, [false; 6]);
        let everything = cgroups.succeeding(&[rule(true, A, None, None, "rwm")], &script);
        assert_eq!(everything, [true; 6]);

        // writing null but not reading it; making any character device
        let some = [
            rule(false, A, None, None, "rwm"),
            rule(true, C, Some(1), Some(3), "w"),
            rule(true, C, None, Some(-1), "m"),
        ];
        assert_eq!(cgroups.succeeding(&some, &script), [true, false, false, true, false, false]);

        // the last rule decides; another kind of device with the same numbers is not meant
        let taken_back = [
            rule(true, C, Some(1), None, "rwm"),
            rule(false, C, Some(1), Some(5), "r"),
            rule(true, B, Some(1), Some(3), "r"),
        ];
        assert_eq!(cgroups.succeeding(&taken_back, &script), [true, true, true, true, false, false]);
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        for bad in [
            rule(true, LinuxDeviceType::P, None, None, "r"),
            rule(true, LinuxDeviceType::C, None, None, "x"),
            rule(true, LinuxDeviceType::C, Some(1 << 40), None, "r"),
        ] {
            assert!(matches!(program(&[bad]), Err(Error::InvalidSpec(_))));
        }
        assert!(!allow_all(&[]));
        assert!(allow_all(&[rule(true, LinuxDeviceType::A, None, None, "rwm")]));
        assert!(!allow_all(&[
            rule(true, LinuxDeviceType::A, None, None, "rwm"),
            rule(false, LinuxDeviceType::C, None, None, "r")
        ]));
    }
}
