//! Which of an index's images fits this machine.

use serde::{Deserialize, Serialize};

/// An operating system, architecture and variant in OCI's words (`linux`, `arm64`, `v8`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`; `wasi`, `wasip1` or `wasip2` for WebAssembly.
    #[serde(default)]
    pub os: String,
    /// Go's word: `amd64`, `arm64`, `arm`, `riscv64`, `wasm`.
    #[serde(default)]
    pub architecture: String,
    /// `v7` and the like; mostly of interest for `arm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Which of an index's images is wanted, when there are several that run here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Choice {
    /// Native programs, WebAssembly where there are none.
    #[default]
    Native,
    /// WebAssembly, native programs where there is none.
    Wasm,
}

impl Platform {
    /// The platform this program was built for, which is the one it runs on.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// Whether images for this platform hold a WebAssembly module.
    #[must_use]
    pub fn is_wasm(&self) -> bool {
        self.architecture == "wasm" || matches!(self.os.as_str(), "wasi" | "wasip1" | "wasip2")
    }

    /// How well an image made for `image` runs here: `None` not at all, otherwise the higher the better.
    ///
    /// Native beats WebAssembly unless that is wanted; among variants of `arm` the highest one not above ours wins.
    pub(crate) fn rank(&self, image: &Self, choice: Choice) -> Option<u32> {
        if image.is_wasm() {
            return Some(if choice == Choice::Wasm { u32::MAX } else { 1 });
        }
        if self.os != image.os || self.architecture != image.architecture {
            return None;
        }
        let (ours, theirs) = (self.variant_number(), image.variant_number());
        (theirs <= ours).then_some(2 + theirs)
    }

    fn variant_number(&self) -> u32 {
        let given = self.variant.as_deref().and_then(|v| v.trim_start_matches('v').parse().ok());
        // What an absent variant means is settled by convention: arm64 is v8, arm is v7, amd64 is v1.
        given.unwrap_or(match self.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            "amd64" => 1,
            _ => 0,
        })
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        Platform { os: os.into(), architecture: architecture.into(), variant: variant.map(Into::into) }
    }

    #[test]
    fn the_best_variant_that_runs_here_wins() {
        let v7 = platform("linux", "arm", Some("v7"));
        let rank = |variant| v7.rank(&platform("linux", "arm", variant), Choice::Native);
        assert!(rank(Some("v7")) > rank(Some("v6")));
        assert_eq!(rank(None), rank(Some("v7")));
        assert_eq!(rank(Some("v8")), None);
        assert_eq!(v7.rank(&platform("linux", "arm64", None), Choice::Native), None);
        assert_eq!(v7.rank(&platform("windows", "arm", None), Choice::Native), None);
        let wasm = |choice| v7.rank(&platform("wasip1", "wasm", None), choice);
        assert!(rank(Some("v5")) > wasm(Choice::Native) && wasm(Choice::Wasm) > rank(Some("v7")));
        let v8 = platform("linux", "arm64", Some("v8"));
        assert!(v8.rank(&platform("linux", "arm64", None), Choice::Native).is_some());
    }
}
