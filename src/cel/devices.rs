//! The variable of expressions about devices: `device.driver == 'gpu.example.com' && device.attributes['gpu.example.com'].memory > 8`.

use crate::env::Env;
use crate::estimate::{Size, Sizes, Within};
use crate::types::{ObjectType, Type};
use std::sync::{Arc, LazyLock};

/// What an expression may cost for one device, as it is estimated and as it turns out (Kubernetes' `CELSelectorExpressionMaxCost`).
pub const COST: u64 = 1_000_000;
/// Kubernetes' limits for devices.
const MOST_ENTRIES: u64 = 32;
const LONGEST_DOMAIN: u64 = 63;
const LONGEST_NAME: u64 = 32;
const LONGEST_DRIVER: u64 = 63;
const LONGEST_VALUE: u64 = 64;

static ENV: LazyLock<Env> = LazyLock::new(|| {
    let of_domains = |of: Type| Type::map(Type::map(of));
    let device = ObjectType::new(
        "kubernetes.DRADevice",
        [
            ("driver".to_owned(), Type::String),
            ("allowMultipleAllocations".to_owned(), Type::Bool),
            ("attributes".to_owned(), of_domains(Type::Dyn)),
            ("capacity".to_owned(), of_domains(Type::Opaque("kubernetes.Quantity"))),
        ],
    );
    Env::new().with("device", Type::Object(Arc::new(device)))
});

static DEVICE: LazyLock<Size> = LazyLock::new(|| {
    let map = |key: u64, value: Size, is_named: bool| Size {
        most: MOST_ENTRIES,
        shortest: 2,
        within: Within::Values { key, value: Box::new(value), is_named },
    };
    let of_domains = |of: Size, is_named: bool| map(LONGEST_DOMAIN, map(LONGEST_NAME, of, is_named), false);
    let fields = [
        ("driver", Size::leaf(LONGEST_DRIVER, 2)),
        ("allowMultipleAllocations", Size::leaf(1, 4)),
        ("attributes", of_domains(Size::leaf(LONGEST_VALUE, 1), true)),
        ("capacity", of_domains(Size::leaf(0, 8), false)),
    ];
    let fields = fields.into_iter().map(|(name, size)| (name.to_owned(), size)).collect();
    Size { most: 0, shortest: 2, within: Within::Fields(fields) }
});

/// The variables of an expression about a device.
pub fn env() -> &'static Env {
    &ENV
}

/// How large they may be.
pub fn sizes() -> Sizes<'static> {
    Sizes::of("device", &DEVICE)
}
