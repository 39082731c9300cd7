//! This process's own memory.

use std::ffi::c_void;
use std::fs;
use std::ops::Range;

/// Gives back what only the start of a program needed: free pages of the allocator, and the mapping of its code, of which
/// the part that is still in use comes back from the page cache as it is used. Best effort.
pub fn release_startup() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) has no preconditions; it takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
    let (Ok(maps), Ok(program)) = (fs::read_to_string("/proc/self/maps"), fs::read_link("/proc/self/exe")) else {
        return;
    };
    for code in code_of(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is a whole mapping of the program's file that can be executed and not be written. Its pages
        // are those of the file, so dropping them from this mapping changes nothing that can be read from it.
        unsafe {
            libc::madvise(code.start as *mut c_void, code.end - code.start, libc::MADV_DONTNEED);
        }
    }
}

/// The mappings of `program` that are code: readable, executable, private, and never written.
fn code_of(maps: &str, program: &str) -> Vec<Range<usize>> {
    let code = |line: &str| {
        let mut fields = line.splitn(6, ' ');
        let (range, rights) = (fields.next()?, fields.next()?);
        let path = fields.nth(3)?.trim_start();
        let (start, end) = range.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        (rights == "r-xp" && path == program).then_some(range)
    };
    maps.lines().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_the_programs_code_is_given_back() {
        let maps = "\
55d0-55d8 r--p 00000000 fe:00 42                         /usr/bin/edge
55d8-55e0 r-xp 00008000 fe:00 42                         /usr/bin/edge
55e0-55e8 r--p 00010000 fe:00 42                         /usr/bin/edge
55e8-55f0 rw-p 00018000 fe:00 42                         /usr/bin/edge
7f00-7f10 r-xp 00000000 fe:00 43                         /usr/lib/libc.so.6
7f20-7f30 r-xp 00000000 00:00 0
";
        assert_eq!(code_of(maps, "/usr/bin/edge"), vec![0x55d8..0x55e0]);
        assert!(code_of("nonsense\n\n", "/usr/bin/edge").is_empty());
    }

    #[test]
    fn the_program_goes_on() {
        release_startup();
        let resident = fs::read_to_string("/proc/self/statm").unwrap();
        assert!(!resident.is_empty());
    }
}
