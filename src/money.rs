//! Amounts of money: whole nano-dollars (10⁻⁹ USD), read and written as the decimal numbers that they are. Nothing passes through binary
//! floating point, which would add digits of its own.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer, ser::Error};
use serde_json::value::RawValue;

/// An amount in nano-dollars. Its text, in JSON too, is a decimal number of dollars: `12.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd(pub i64);

/// A text that is no amount of money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an amount in US dollars of at least 0 with at most nine decimals, such as 12.5")]
pub struct NoAmount;

impl FromStr for Usd {
    type Err = NoAmount;

    /// Reads an amount of at least 0.
    fn from_str(text: &str) -> Result<Self, NoAmount> {
        nano_dollars(text).and_then(|nanos| i64::try_from(nanos).ok()).map(Self).ok_or(NoAmount)
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let nanos = self.0.unsigned_abs();
        let fraction = format!("{:09}", nanos % 1_000_000_000);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        write!(f, "{sign}{}{dot}{fraction}", nanos / 1_000_000_000)
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(S::Error::custom)?.serialize(serializer)
    }
}

/// The digits of an amount of dollars as nano-dollars, when that is a whole number of at least 0 that fits.
pub(crate) fn nano_dollars(digits: &str) -> Option<u64> {
    const DECIMALS: i32 = 9;
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (digits, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let significant = all.trim_end_matches('0');
    if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if significant.is_empty() {
        return Some(0);
    }
    let dropped = i32::try_from(all.len().checked_sub(significant.len())?).ok()?;
    let decimals = i32::try_from(fraction.len()).ok()?;
    let shift = DECIMALS.checked_add(exponent)?.checked_sub(decimals)?.checked_add(dropped)?;
    let power = 10u64.checked_pow(u32::try_from(shift).ok()?)?;
    significant.parse::<u64>().ok()?.checked_mul(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_as_exact_decimals() {
        let check = |nanos, expect: &str| {
            assert_eq!(serde_json::to_string(&Usd(nanos)).unwrap(), expect);
            assert_eq!(Usd(nanos).to_string(), expect);
        };
        check(0, "0");
        check(1, "0.000000001");
        check(37_500, "0.0000375");
        check(300_000_000, "0.3");
        check(1_000_000_000, "1");
        check(i64::MAX, "9223372036.854775807");
        check(-5, "-0.000000005");
    }

    #[test]
    fn amounts_are_read_exactly_or_not_at_all() {
        let check = |text: &str, expect: Option<i64>| assert_eq!(text.parse().ok(), expect.map(Usd), "{text:?}");
        check("12.5", Some(12_500_000_000));
        check("0.1", Some(100_000_000));
        check("0", Some(0));
        check("100", Some(100_000_000_000));
        check("9223372036.854775807", Some(i64::MAX));
        check("9223372036.854775808", None);
        check("0.0000000001", None);
        for no_amount in ["", ".", "-1", "1,5", "$5", "5 USD", "1_000", "NaN", "inf", "0x10", "1.2.3"] {
            check(no_amount, None);
        }
    }
}
