//! What flags take: sizes, durations, permission bits, rights.

use std::time::Duration;

use crate::hash::Root;
use crate::limits::RATE_MIN;
use crate::net::Congestion;
use crate::protocol::Rights;
use crate::storage::ModeRange;

/// Connections that one transfer may be told to use.
pub const STREAMS_MAX: u16 = 32;

/// A number of bytes: digits, and `K`, `M`, `G` or `T` for powers of 1024.
///
/// # Errors
/// What is wrong with it.
pub fn size(text: &str) -> Result<u64, String> {
    crate::access::policy::size(text)
}

/// A number of bytes per second, as [`size`] writes it.
///
/// # Errors
/// What is wrong with it.
pub fn rate(text: &str) -> Result<u64, String> {
    let hint = "a rate is written 512K, 10M or 1G: bytes per second";
    match size(text) {
        Ok(rate) if rate >= RATE_MIN => Ok(rate),
        Ok(_) => Err(format!("less than {}K per second, by which nothing gets anywhere", RATE_MIN >> 10)),
        Err(_) => Err(hint.to_owned()),
    }
}

/// A bound that is set, or (none) taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound(pub Option<u64>);

fn bound(text: &str, parse: impl Fn(&str) -> Result<u64, String>) -> Result<Bound, String> {
    if text == "none" { Ok(Bound(None)) } else { parse(text).map(|bound| Bound(Some(bound))) }
}

/// A [`size`], or `none`.
///
/// # Errors
/// What is wrong with it.
pub fn size_or_none(text: &str) -> Result<Bound, String> {
    bound(text, size)
}

/// A [`rate`], or `none`.
///
/// # Errors
/// What is wrong with it.
pub fn rate_or_none(text: &str) -> Result<Bound, String> {
    bound(text, rate)
}

/// A number, or `none`.
///
/// # Errors
/// What is wrong with it.
pub fn count_or_none(text: &str) -> Result<Bound, String> {
    bound(text, |text| text.parse().map_err(|_| "a number, or `none`".to_owned()))
}

/// A congestion control that this machine has.
///
/// # Errors
/// Why it cannot be had.
pub fn congestion(name: &str) -> Result<Congestion, String> {
    Congestion::named(name).map_err(|error| error.to_string())
}

/// A length of time above zero: digits and `s`, `m`, `h` or `d`.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let hint = "a length of time is written 2s, 5m, 24h or 3d";
    let (at, unit) = text.char_indices().next_back().ok_or(hint)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(hint.to_owned()),
    };
    let number = number(&text[..at]).ok_or(hint)?;
    // Deadlines are added to the clock, which has an end.
    let seconds = number.checked_mul(seconds).filter(|&seconds| seconds <= 100 * 365 * 86_400);
    match seconds.ok_or("longer than a hundred years")? {
        0 => Err("it must be longer than nothing".to_owned()),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

/// As [`duration`], or `0`.
///
/// # Errors
/// What is wrong with it.
pub fn duration_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { duration(text) }
}

/// Connections of one transfer.
///
/// # Errors
/// What is wrong with the number.
pub fn streams(count: u16) -> Result<u16, String> {
    if (1..=STREAMS_MAX).contains(&count) {
        Ok(count)
    } else {
        Err(format!("connections of one transfer are 1 to {STREAMS_MAX}"))
    }
}

/// Digits only: `u64::from_str` takes a sign.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// `MIN[:MAX]`, octal; without MAX, up to 0775 and what MIN has besides.
///
/// # Errors
/// What is wrong with it.
pub fn mode_range(text: &str) -> Result<ModeRange, String> {
    let hint = "permissions are written MIN[:MAX] in octal, as in 0640 or 0640:0660, up to 0777";
    let bits = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| u32::from_str_radix(text, 8).ok()).flatten().filter(|&bits| bits <= 0o777)
    };
    let (min, max) = text.split_once(':').map_or((text, None), |(min, max)| (min, Some(max)));
    let min = bits(min).ok_or(hint)?;
    let max = max.map_or(Some(0o775 | min), bits).ok_or(hint)?;
    let range = ModeRange { min, max };
    if range.min & !range.max == 0 { Ok(range) } else { Err("MIN has bits that MAX has not".to_owned()) }
}

/// Names of rights between commas.
///
/// # Errors
/// The name that is none.
pub fn rights(text: &str) -> Result<Rights, String> {
    let mut rights = Rights::NONE;
    for name in text.split(',') {
        let right = Rights::named(name).ok_or_else(|| {
            let names: Vec<&str> = Rights::NAMES.iter().map(|(name, _)| *name).collect();
            format!("`{name}` is no right; they are {}", names.join(", "))
        })?;
        rights = rights.with(right);
    }
    Ok(rights)
}

/// A BLAKE3 hash as `b3sum` prints it.
///
/// # Errors
/// What is wrong with it.
pub fn root(text: &str) -> Result<Root, String> {
    Root::from_hex(text).ok_or_else(|| "a hash is 64 hexadecimal digits, as b3sum prints it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("1K", Some(1 << 10)),
            ("1k", Some(1 << 10)),
            ("3M", Some(3 << 20)),
            ("2G", Some(2 << 30)),
            ("5T", Some(5 << 40)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("17179869184G", None),
            ("", None),
            ("K", None),
            ("-1", None),
            ("+1", None),
            ("1.5G", None),
            ("1 K", None),
            ("1KB", None),
            ("1µ", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn bounds_are_set_or_taken_away() {
        for parse in [size_or_none, rate_or_none, count_or_none] {
            assert_eq!(parse("none"), Ok(Bound(None)));
            assert_eq!(parse("65536"), Ok(Bound(Some(65_536))));
            for text in ["", "-1", "None", "1x"] {
                assert!(parse(text).is_err(), "{text}");
            }
        }
        assert_eq!(size_or_none("1G"), Ok(Bound(Some(1 << 30))));
        assert!(rate_or_none("1K").is_err());
    }

    #[test]
    fn rates_and_controls() {
        assert_eq!(rate("16K"), Ok(16 << 10));
        assert_eq!(rate("2G"), Ok(2 << 30));
        for text in ["0", "1K", "16383", "", "10MB", "fast"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert!(congestion("reno").is_ok());
        assert!(congestion("no-such-control").unwrap_err().contains("no-such-control"));
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("2s", Some(2)),
            ("5m", Some(300)),
            ("24h", Some(86_400)),
            ("3d", Some(259_200)),
            ("0s", None),
            ("5", None),
            ("s", None),
            ("", None),
            ("5ms", None),
            ("-5s", None),
            ("1.5h", None),
            ("5M", None),
            ("5é", None),
            ("40000d", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(duration(text).ok().map(|time| time.as_secs()), expected, "{text}");
        }
    }

    #[test]
    fn modes() {
        let range = |min, max| Some(ModeRange { min, max });
        for (text, expected) in [
            ("640", range(0o640, 0o775)),
            ("0640:0660", range(0o640, 0o660)),
            ("0:0", range(0, 0)),
            ("0640:0600", None),
            ("4755", None),
            ("0o640", None),
            ("+40", None),
            ("rw", None),
            ("", None),
            (":", None),
        ] {
            assert_eq!(mode_range(text).ok(), expected, "{text}");
        }
        assert_eq!(mode_range("0440:0660").unwrap().apply(0o777), 0o660);
        assert_eq!(mode_range("0440:0660").unwrap().apply(0), 0o440);
    }

    #[test]
    fn names_of_rights() {
        assert_eq!(rights("list,read"), Ok(Rights::LIST.with(Rights::READ)));
        assert!(rights("list,").is_err());
        assert!(rights("all").unwrap_err().contains("list, read, create"));
    }
}
