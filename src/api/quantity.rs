//! `resource.Quantity`: exact decimal amounts such as `500m`, `1Gi` or `1e3`.

use std::fmt;

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$', which {text:?} does not"
)]
pub struct QuantityError {
    /// The text.
    pub text: String,
}

/// In which of its three families of suffixes a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// An amount of a resource, exact to nano units (finer amounts are rounded up, as Kubernetes does).
#[derive(Clone, Copy, Debug, Eq)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

const NANOS: i128 = 1_000_000_000;
const BINARY: [(&str, u32); 6] = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
const DECIMAL: [(&str, i32); 10] =
    [("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("", 0), ("m", -3), ("u", -6), ("n", -9)];

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// So many whole units, written with decimal suffixes.
    pub fn from_units(units: i64) -> Self {
        Self { nanos: i128::from(units) * NANOS, format: Format::DecimalSi }
    }

    /// So many thousandths, written with decimal suffixes.
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * 1_000_000, format: Format::DecimalSi }
    }

    /// So many thousand-millionths, written with decimal suffixes.
    pub fn from_nanos(nanos: i64) -> Self {
        Self { nanos: nanos.into(), format: Format::DecimalSi }
    }

    /// So many bytes, written with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANOS, format: Format::BinarySi }
    }

    /// Reads a quantity.
    ///
    /// # Errors
    /// [`QuantityError`] when the text is malformed or out of range (2^63 units).
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        Self::read(text).ok_or_else(|| QuantityError { text: text.to_owned() })
    }

    fn read(text: &str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(digits);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) || whole.len() + fraction.len() > 36 {
            return None;
        }
        let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
        let scale = i32::try_from(fraction.len()).ok()?;
        let (nanos, format) = if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == suffix) {
            let scaled = mantissa.checked_mul(1i128 << bits)?;
            (shift_decimal(scaled, 9 - scale)?, Format::BinarySi)
        } else if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
            (shift_decimal(mantissa, 9 - scale + exponent)?, Format::DecimalSi)
        } else {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            if !(-36..=36).contains(&exponent) {
                return None;
            }
            (shift_decimal(mantissa, 9 - scale + exponent)?, Format::DecimalExponent)
        };
        if nanos > i128::from(i64::MAX) * NANOS {
            return None;
        }
        Some(Self { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// Whole units, rounded up.
    pub fn value(&self) -> i64 {
        i64::try_from(div_up(self.nanos, NANOS)).unwrap_or(i64::MAX)
    }

    /// Thousandths, rounded up.
    pub fn milli_value(&self) -> i64 {
        i64::try_from(div_up(self.nanos, 1_000_000)).unwrap_or(i64::MAX)
    }

    /// About so many units.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANOS as f64
    }

    /// Whether it is less than zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// The sum, in this quantity's format; saturates.
    #[must_use]
    pub fn add(&self, other: &Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), format }
    }

    /// The difference, in this quantity's format; saturates.
    #[must_use]
    pub fn sub(&self, other: &Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}

/// `n * 10^by`, rounded away from zero when digits are lost.
fn shift_decimal(n: i128, by: i32) -> Option<i128> {
    let factor = 10i128.checked_pow(by.unsigned_abs());
    match factor {
        Some(f) if by >= 0 => n.checked_mul(f),
        Some(f) => Some(div_up(n, f)),
        // so small that one nano is the next greater amount
        None if by < 0 => Some(n.signum()),
        None => (n == 0).then_some(0),
    }
}

/// Division that rounds away from zero.
fn div_up(n: i128, by: i128) -> i128 {
    n / by + if n % by == 0 { 0 } else { n.signum() }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.nanos;
        if n == 0 {
            return f.write_str("0");
        }
        // binary suffixes are for whole numbers of at least 1024
        if self.format == Format::BinarySi && n % NANOS == 0 && (n / NANOS).abs() >= 1024 {
            let units = n / NANOS;
            let (suffix, bits) =
                BINARY.iter().find(|(_, bits)| units % (1i128 << bits) == 0).copied().unwrap_or(("", 0));
            return write!(f, "{}{suffix}", units >> bits);
        }
        let (suffix, exponent) = DECIMAL
            .iter()
            .find(|(_, e)| n % 10i128.pow(u32::try_from(e + 9).unwrap_or(0)) == 0)
            .copied()
            .unwrap_or(("n", -9));
        let number = n / 10i128.pow(u32::try_from(exponent + 9).unwrap_or(0));
        match self.format {
            Format::DecimalExponent if exponent != 0 => write!(f, "{number}e{exponent}"),
            _ => write!(f, "{number}{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1000k", "1M"),
            ("1e3", "1e3"),
            ("12E6", "12e6"),
            ("100Ki", "100Ki"),
            ("-1", "-1"),
            ("+5", "5"),
            ("0.0000000001", "1n"),
            ("512", "512"),
            ("0.5Ki", "512"),
            (".5", "500m"),
        ] {
            let q = Quantity::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(q.to_string(), canonical, "{text}");
            assert_eq!(Quantity::parse(canonical).expect("canonical form parses"), q);
        }
    }

    #[test]
    fn amounts() {
        assert_eq!(Quantity::parse("100m").expect("parses").milli_value(), 100);
        assert_eq!(Quantity::parse("100m").expect("parses").value(), 1);
        assert_eq!(Quantity::parse("1Gi").expect("parses").value(), 1 << 30);
        let sum = Quantity::parse("1Gi").expect("parses").add(&Quantity::parse("512Mi").expect("parses"));
        assert_eq!(sum.to_string(), "1536Mi");
        assert!(Quantity::parse("2").expect("parses") > Quantity::parse("1999m").expect("parses"));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            ["", "-", ".", "1.2.3", "a", "1x", "1 Gi", "1e", "1e999", "99999999999999999999999999999999999999", "1KI"]
        {
            assert!(Quantity::parse(bad).is_err(), "{bad}");
        }
    }
}
