//! Values as they are given, and the parsers that turn them into types that cannot be wrong.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, time::Duration};

use ipnet::IpNet;
use reqwest::Url;
use workers::providers::Secret;

use super::AllowedHost;
use crate::money;

/// A value before it is parsed. It has no `Debug`: it may be a secret.
#[derive(Clone)]
pub(super) enum Value {
    /// From the environment, a flag or a default: its type is what its key wants.
    Untyped(String),
    Text(String),
    Integer(i128),
    /// In decimal digits, so that nothing is lost.
    Float(String),
    Bool(bool),
    List(Vec<Value>),
    /// A type that no key has, by its name.
    Other(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Untyped(text) | Value::Text(text) if text.is_empty() => f.write_str("empty"),
            Value::Untyped(text) | Value::Text(text) => write!(f, "{text:?}"),
            Value::Integer(number) => write!(f, "{number}"),
            Value::Float(digits) => f.write_str(digits),
            Value::Bool(value) => write!(f, "{value}"),
            Value::List(_) => f.write_str("a list"),
            Value::Other(kind) => write!(f, "a {kind}"),
        }
    }
}

/// What a parser wanted, as the end of "must be …".
pub(super) struct Wrong {
    pub expected: String,
    /// What to say instead of the value itself, where that may hold a secret.
    pub found: Option<String>,
}

impl Wrong {
    pub(super) fn expected(expected: impl Into<String>) -> Self {
        Self { expected: expected.into(), found: None }
    }
}

/// Any text but the empty one.
pub(super) fn text(value: &Value) -> Result<String, Wrong> {
    match value {
        Value::Untyped(text) | Value::Text(text) if !text.trim().is_empty() => Ok(text.clone()),
        _ => Err(Wrong::expected("a text that is not empty")),
    }
}

/// A short name of letters, digits, `-`, `_`, `.`, `:` and `/`: it becomes part of keys, labels and log lines.
pub(super) fn name(value: &Value) -> Result<String, Wrong> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
    text(value)
        .ok()
        .filter(|name| name.len() <= 100 && name.chars().all(allowed))
        .ok_or_else(|| Wrong::expected("a name of at most 100 letters, digits, '-', '_', '.', ':' and '/'"))
}

/// A model's name, as freely as providers choose them: `meta-llama/Llama-3.1:free`, `@cf/mistral`.
pub(super) fn model_name(value: &Value) -> Result<String, Wrong> {
    text(value)
        .ok()
        .filter(|name| name.len() <= 200 && name.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| Wrong::expected("a name of at most 200 visible ASCII characters without spaces"))
}

/// One secret, or several with commas between them; the first is the one in use.
pub(super) fn secrets(value: &Value) -> Result<(Secret, Vec<Secret>), Wrong> {
    let text = text(value)?;
    let mut parts = text.split(',').map(str::trim);
    match (parts.next(), parts.map(str::to_owned).collect::<Vec<_>>()) {
        (Some(first), old) if !first.is_empty() && old.iter().all(|part| !part.is_empty()) => {
            Ok((Secret::new(first), old.into_iter().map(Secret::new).collect()))
        }
        _ => Err(Wrong::expected("one or more texts, none of them empty, with commas between them")),
    }
}

/// Networks, addresses and names of hosts: a list, or in the environment words with commas between them.
pub(super) fn hosts(value: &Value) -> Result<Vec<AllowedHost>, Wrong> {
    let wrong = |found: Option<String>| Wrong {
        expected: "a list of networks, addresses and host names, such as 10.1.2.0/24 and hooks.internal".to_owned(),
        found,
    };
    let words: Vec<String> = match value {
        Value::List(items) => items
            .iter()
            .map(|item| match item {
                Value::Text(text) => Ok(text.clone()),
                other => Err(wrong(Some(format!("a list with {other}")))),
            })
            .collect::<Result<_, _>>()?,
        Value::Untyped(text) => text.split(',').map(|word| word.trim().to_owned()).collect(),
        _ => return Err(wrong(None)),
    };
    let host = |word: String| {
        if let Ok(network) = word.parse::<IpNet>() {
            return Ok(AllowedHost::Network(network));
        }
        if let Ok(address) = word.parse::<std::net::IpAddr>() {
            return Ok(AllowedHost::Network(address.into()));
        }
        let name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let named = !word.is_empty() && word.chars().all(name) && word.chars().any(|c| c.is_ascii_alphabetic());
        if named { Ok(AllowedHost::Name(word.to_ascii_lowercase())) } else { Err(wrong(Some(format!("{word:?}")))) }
    };
    words.into_iter().map(host).collect()
}

pub(super) fn boolean(value: &Value) -> Result<bool, Wrong> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Untyped(text) => text.parse().map_err(|_| Wrong::expected("true or false")),
        _ => Err(Wrong::expected("true or false")),
    }
}

/// A whole number in a range.
pub(super) fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&Value) -> Result<T, Wrong> {
    move |value| {
        integer(value)
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| Wrong::expected(format!("a whole number from {} to {}", range.start(), range.end())))
    }
}

/// A limit that is off when its key is absent: 0 would mean "nothing at all" to some and "no limit" to others.
pub(super) fn limit<T: TryFrom<u64>>(value: &Value) -> Result<T, Wrong> {
    integer(value)
        .filter(|number| *number > 0)
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| Wrong::expected("a whole number from 1 up (leave it out for no limit)"))
}

/// Milliseconds, from one to a day.
pub(super) fn millis(value: &Value) -> Result<Duration, Wrong> {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    integer(value)
        .filter(|number| (1..=DAY).contains(number))
        .map(Duration::from_millis)
        .ok_or_else(|| Wrong::expected(format!("a whole number of milliseconds from 1 to {DAY}")))
}

fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::Untyped(text) => text.parse().ok(),
        _ => None,
    }
}

pub(super) fn address(value: &Value) -> Result<SocketAddr, Wrong> {
    text(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Wrong::expected("an IP address and a port, such as 127.0.0.1:8080"))
}

/// One of a few words.
pub(super) fn word(value: &Value, words: &[&'static str]) -> Result<&'static str, Wrong> {
    let found = match value {
        Value::Untyped(text) | Value::Text(text) => words.iter().find(|word| *word == text),
        _ => None,
    };
    found.copied().ok_or_else(|| Wrong::expected(words.join(" or ")))
}

/// A list of words out of a few.
pub(super) fn words(value: &Value, allowed: &[&'static str]) -> Result<Vec<String>, Wrong> {
    let Value::List(items) = value else {
        return Err(Wrong::expected(format!("a list of {}", allowed.join(" and "))));
    };
    items
        .iter()
        .map(|item| match word(item, allowed) {
            Ok(word) => Ok(word.to_owned()),
            Err(_) => Err(Wrong {
                expected: format!("a list of {}", allowed.join(" and ")),
                found: Some(format!("a list with {item}")),
            }),
        })
        .collect()
}

/// Origins of web pages as browsers write them (RFC 6454): scheme, host and, where it is not the scheme's own, port. `*` is any of them.
/// The environment writes them with commas between.
pub(super) fn origins(value: &Value) -> Result<Vec<String>, Wrong> {
    let expected = "a list of origins, such as https://chat.example, or *";
    let texts = match value {
        Value::List(items) => items.iter().map(text).collect::<Result<Vec<_>, _>>().ok(),
        Value::Untyped(list) => Some(list.split(',').map(|origin| origin.trim().to_owned()).collect()),
        _ => None,
    };
    let Some(texts) = texts else { return Err(Wrong::expected(expected)) };
    texts
        .into_iter()
        .map(|text| {
            let written = Url::parse(&text).ok().filter(Url::has_host).map(|url| url.origin().ascii_serialization());
            if text == "*" || written.as_deref() == Some(&text) {
                return Ok(text);
            }
            let found = match written {
                Some(written) if written != "null" => format!("a list with {text:?}, which browsers write {written:?}"),
                _ => format!("a list with {text:?}"),
            };
            Err(Wrong { expected: expected.to_owned(), found: Some(found) })
        })
        .collect()
}

/// A URL with one of these schemes, kept as it was written.
pub(super) fn url(value: &Value, schemes: &[&'static str]) -> Result<Secret, Wrong> {
    let text = text(value).unwrap_or_default();
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    let wrong =
        |found: Option<String>| Wrong { expected: format!("a URL that begins with {}:", schemes.join(": or ")), found };
    if !schemes.contains(&scheme) {
        // A password may sit anywhere in a text that is not the URL we know, even where its scheme should be.
        let plain = !scheme.is_empty() && scheme.len() <= 12 && scheme.chars().all(|c| c.is_ascii_alphanumeric());
        let found = match value {
            _ if plain => Some(format!("one that begins with {scheme}:")),
            Value::Untyped(_) | Value::Text(_) if !text.is_empty() => Some("something else".to_owned()),
            _ => None,
        };
        return Err(wrong(found));
    }
    match Url::parse(&text) {
        Ok(_) => Ok(Secret::new(text)),
        // SQLite paths may be more than a URL allows.
        Err(_) if scheme == "sqlite" => Ok(Secret::new(text)),
        Err(error) => Err(wrong(Some(format!("one that is broken: {error}")))),
    }
}

/// An `http` or `https` URL of a provider, without its last slash. A query is kept: Azure puts its version there.
/// Credentials have keys of their own, so that this URL may be shown.
pub(super) fn base_url(value: &Value) -> Result<String, Wrong> {
    let text = url(value, &["https", "http"])?.expose().to_owned();
    let plain = Url::parse(&text).is_ok_and(|url| {
        url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none()
            && !url.query_pairs().any(|(name, _)| is_secret_name(&name))
    });
    if !plain {
        return Err(Wrong {
            expected: "an http: or https: URL without user name, password, key or fragment".to_owned(),
            found: Some("one with them".to_owned()),
        });
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// US dollars for a million tokens, exactly, as nano-dollars (10⁻⁹ USD).
///
/// Works on the digits as they are written: a price never passes through binary floating point.
pub(super) fn nano_dollars(value: &Value) -> Result<u64, Wrong> {
    let digits = match value {
        Value::Integer(number) => number.to_string(),
        Value::Float(digits) | Value::Untyped(digits) => digits.clone(),
        _ => String::new(),
    };
    money::nano_dollars(&digits)
        .ok_or_else(|| Wrong::expected("a price in US dollars of at least 0 with at most nine decimals, such as 2.5"))
}

/// A URL as it may be shown: its password, and the values of query parameters that look like one, are `[secret]`.
pub fn mask_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // `sqlite:file` holds no password; anything else is not a form we know.
        return if url.starts_with("sqlite:") { url.to_owned() } else { "[secret]".to_owned() };
    };
    let (address, query) = match rest.split_once('?') {
        // A '?' before the last '@' belongs to a password that was not escaped.
        Some((address, query)) if !query.contains('@') => (address, Some(query)),
        _ => (rest, None),
    };
    let address = match address.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:[secret]@{host}"),
            None => format!("{user}@{host}"),
        },
        None => address.to_owned(),
    };
    let Some(query) = query else {
        return format!("{scheme}://{address}");
    };
    let parameters: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if is_secret_name(name) => format!("{name}=[secret]"),
            _ => parameter.to_owned(),
        })
        .collect();
    format!("{scheme}://{address}?{}", parameters.join("&"))
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase();
    ["pass", "secret", "token", "key", "sig"].iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_exact_to_the_nano_dollar() {
        let price = |digits: &str| nano_dollars(&Value::Float(digits.to_owned())).ok();
        assert_eq!(price("2.5"), Some(2_500_000_000));
        assert_eq!(price("0.1"), Some(100_000_000));
        assert_eq!(price("0.000000001"), Some(1));
        assert_eq!(price("1.10"), Some(1_100_000_000));
        assert_eq!(price("25e-1"), Some(2_500_000_000));
        assert_eq!(price("1.5E+2"), Some(150_000_000_000));
        assert_eq!(price("0.0"), Some(0));
        assert_eq!(price("+3.0"), Some(3_000_000_000));
        for refused in ["-1.0", "-0.5", "nan", "inf", "+inf", "-inf", "0.0000000001", "1e300", "1e99999999999", "", "."]
        {
            assert_eq!(price(refused), None, "{refused}");
        }
        assert_eq!(nano_dollars(&Value::Integer(10)).ok(), Some(10_000_000_000));
        assert_eq!(nano_dollars(&Value::Integer(-1)).ok(), None);
    }

    #[test]
    fn urls_are_shown_without_their_passwords() {
        let check = |url: &str, shown: &str| assert_eq!(mask_url(url), shown, "{url}");
        check("postgres://pm:s3cret@db/pm", "postgres://pm:[secret]@db/pm");
        check("postgres://pm:a/b?c@d@db/pm", "postgres://pm:[secret]@db/pm");
        check("redis://:s3cret@cache:6379/0", "redis://:[secret]@cache:6379/0");
        check("postgres://db/pm?user=pm&password=s3cret", "postgres://db/pm?user=pm&password=[secret]");
        check("sqlite://prompt-manager.db?mode=rwc", "sqlite://prompt-manager.db?mode=rwc");
        check("sqlite::memory:", "sqlite::memory:");
        check("postgres:pm:s3cret@db", "[secret]");
    }
}
