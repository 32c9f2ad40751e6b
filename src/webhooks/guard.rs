//! Which URLs may be called: callers choose them, and this program stands where callers cannot reach (server-side request forgery).
//!
//! A URL is looked at when its run is accepted, and again at every call, with the addresses that its name has at that moment; the connection is made
//! to an address that was looked at, and redirects are not followed.
//!
//! An address is refused when it is not on the public Internet, by the registries of IANA
//! (<https://www.iana.org/assignments/iana-ipv4-special-registry>, <https://www.iana.org/assignments/iana-ipv6-special-registry>,
//! <https://www.iana.org/assignments/ipv6-address-space>), or is a multicast one. The few special blocks that can be reached from everywhere
//! (anycast services, AS112) are refused as well: nobody receives webhooks there.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use reqwest::Url;

use crate::config::AllowedHost;

/// The longest URL: longer than any receiver needs, short enough for a row.
const MAX_URL: usize = 2048;

/// What an operator allows beyond the public Internet. Cheap enough to clone.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    allow: Vec<AllowedHost>,
}

/// What is wrong with a URL, as the end of "must be …, not …".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlProblem {
    pub expected: &'static str,
    pub found: String,
}

impl fmt::Display for UrlProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "must be {}, not {}", self.expected, self.found)
    }
}

impl Guard {
    pub fn new(allow: Vec<AllowedHost>) -> Self {
        Self { allow }
    }

    /// The URL as it will be called, if that is allowed as far as can be known without asking for the addresses of its host.
    pub fn check(&self, text: &str) -> Result<Url, UrlProblem> {
        let wrong = |expected, found: &str| Err(UrlProblem { expected, found: found.to_owned() });
        if text.len() > MAX_URL {
            return wrong("a URL of at most 2048 bytes", &format!("one of {}", text.len()));
        }
        let Ok(mut url) = Url::parse(text) else { return wrong("an https URL", "something else") };
        if !matches!(url.scheme(), "https" | "http") {
            return wrong("an https URL", "one of another scheme");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return wrong("a URL without user name and password", "one with them");
        }
        let Some(host) = url.host_str().map(plain_host) else { return wrong("an https URL", "one without a host") };
        let address = host.parse::<IpAddr>().ok();
        let allowed = self.allows_name(&host) || address.is_some_and(|address| self.allows_address(address));
        if url.scheme() == "http" && !allowed {
            return wrong("an https URL", "an http one");
        }
        if let Some(refusal) = address.filter(|_| !allowed).and_then(refusal) {
            return wrong("a URL on the public Internet", &format!("one of a {refusal} address"));
        }
        // What follows # is never sent.
        url.set_fragment(None);
        if url.as_str().len() > MAX_URL {
            return wrong("a URL of at most 2048 bytes", "a longer one once it is escaped");
        }
        Ok(url)
    }

    /// Whether a connection may be made for `host` to this address, which its name had a moment ago.
    pub(super) fn admits(&self, host: &str, address: IpAddr) -> bool {
        refusal(address).is_none() || self.allows_address(address) || self.allows_name(&plain_host(host))
    }

    fn allows_name(&self, host: &str) -> bool {
        self.allow.iter().any(|allowed| matches!(allowed, AllowedHost::Name(name) if name == host))
    }

    fn allows_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow.iter().any(|allowed| matches!(allowed, AllowedHost::Network(network) if network.contains(&address)))
    }
}

/// Without the brackets of an IPv6 address and without the dot that ends an absolute name.
fn plain_host(host: &str) -> String {
    host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase()
}

/// Why this address is not on the public Internet; `None` when it is.
pub(super) fn refusal(address: IpAddr) -> Option<&'static str> {
    // An IPv4 address inside an IPv6 one (::ffff:0:0/96) is what a socket connects to.
    match address.to_canonical() {
        IpAddr::V4(address) => refusal_v4(address),
        IpAddr::V6(address) => refusal_v6(address),
    }
}

/// First address, bits of the prefix, name.
const SPECIAL_V4: &[([u8; 4], u32, &str)] = &[
    ([0, 0, 0, 0], 8, "local"),
    ([10, 0, 0, 0], 8, "private"),
    ([100, 64, 0, 0], 10, "shared"),
    ([127, 0, 0, 0], 8, "loopback"),
    ([169, 254, 0, 0], 16, "link-local"),
    ([172, 16, 0, 0], 12, "private"),
    ([192, 0, 0, 0], 24, "reserved"),
    ([192, 0, 2, 0], 24, "documentation"),
    ([192, 31, 196, 0], 24, "reserved"),
    ([192, 52, 193, 0], 24, "reserved"),
    ([192, 88, 99, 0], 24, "reserved"),
    ([192, 168, 0, 0], 16, "private"),
    ([192, 175, 48, 0], 24, "reserved"),
    ([198, 18, 0, 0], 15, "benchmarking"),
    ([198, 51, 100, 0], 24, "documentation"),
    ([203, 0, 113, 0], 24, "documentation"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([240, 0, 0, 0], 4, "reserved"),
];

/// Inside 2000::/3; nothing outside of it is on the Internet, but for the translation of IPv4 below.
const SPECIAL_V6: &[([u16; 8], u32, &str)] = &[
    // Teredo, benchmarking, ORCHID and more.
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, "reserved"),
    ([0x2001, 0x0db8, 0, 0, 0, 0, 0, 0], 32, "documentation"),
    // 6to4 leads to an IPv4 address of the caller's choice.
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "6to4"),
    ([0x2620, 0x004f, 0x8000, 0, 0, 0, 0, 0], 48, "reserved"),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "documentation"),
];

fn refusal_v4(address: Ipv4Addr) -> Option<&'static str> {
    let inside = |first: [u8; 4], bits: u32| {
        let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0);
        address.to_bits() & mask == Ipv4Addr::from(first).to_bits()
    };
    SPECIAL_V4.iter().find(|(first, bits, _)| inside(*first, *bits)).map(|(_, _, name)| *name)
}

fn refusal_v6(address: Ipv6Addr) -> Option<&'static str> {
    let inside = |first: [u16; 8], bits: u32| {
        let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0);
        address.to_bits() & mask == Ipv6Addr::from(first).to_bits()
    };
    // NAT64 with its well-known prefix (RFC 6052): the network's translator calls the IPv4 address that follows. Hosts without IPv4 see
    // all of the IPv4 Internet like this.
    if inside([0x0064, 0xff9b, 0, 0, 0, 0, 0, 0], 96) {
        let [.., a, b, c, d] = address.octets();
        return refusal_v4(Ipv4Addr::new(a, b, c, d));
    }
    if address.is_loopback() {
        return Some("loopback");
    }
    if !inside([0x2000, 0, 0, 0, 0, 0, 0, 0], 3) {
        let named = [
            ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "private"),
            ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local"),
            ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast"),
        ];
        return Some(
            named.iter().find(|(first, bits, _)| inside(*first, *bits)).map_or("reserved", |(_, _, name)| *name),
        );
    }
    SPECIAL_V6.iter().find(|(first, bits, _)| inside(*first, *bits)).map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests;
