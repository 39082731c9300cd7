//! The `bpf(2)` system call, as far as the device access of cgroups (version 2) needs it.
//!
//! Linux `include/uapi/linux/bpf.h` is the reference for every number here.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of ancestors stay in force, and descendants may have their own: access needs the consent of all.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The licence the kernel is told. It decides only which helper functions a program may call, and ours call none.
const LICENSE: &std::ffi::CStr = c"Apache-2.0";

/// One instruction of a program, as the kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the first four bits of memory order, source register in the others.
    pub registers: u8,
    /// Distance of a jump in instructions, or of a load in bytes.
    pub offset: i16,
    /// Constant operand.
    pub immediate: i32,
}

/// The part of `union bpf_attr` that loading needs; the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part of `union bpf_attr` that attaching needs.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a program that decides about accesses to device nodes. The kernel verifies it.
///
/// # Errors
/// The error of `bpf(2)`: EINVAL or EACCES when the verifier refuses it, EPERM without CAP_SYS_ADMIN or (before Linux 5.11)
/// enough RLIMIT_MEMLOCK.
pub fn load_cgroup_device(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..12].copy_from_slice(b"edge_devices");
    let attributes = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: instructions.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just returned this new descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a program of [`load_cgroup_device`] in force for the cgroup whose directory is `cgroup`, and for those below it. It
/// stays until the cgroup is removed, so the program's descriptor may be closed.
///
/// # Errors
/// The error of `bpf(2)`; EBADF when `cgroup` is no directory of a cgroup version 2.
pub fn attach_cgroup_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

/// `T` is one of the structures above, whose addresses point to memory that outlives the call.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes at the address of a live value without padding, and what its addresses
    // point to (instructions of the given number, a C string) which the callers borrow until after this call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };

    #[test]
    fn the_kernel_verifies_what_it_loads() {
        let zero = Instruction { code: 0xb7, registers: 0, offset: 0, immediate: 0 };
        let program = load_cgroup_device(&[zero, EXIT]).unwrap();
        // register 0 was never set
        assert!(load_cgroup_device(&[EXIT]).is_err());
        let no_cgroup = std::fs::File::open("/").unwrap();
        use std::os::fd::AsFd;
        let err = attach_cgroup_device(no_cgroup.as_fd(), program.as_fd()).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::EBADF), "{err}");
    }
}
