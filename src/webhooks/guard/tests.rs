//! What the guard refuses.

use super::*;

fn refused(address: &str) -> Option<&'static str> {
    refusal(address.parse().unwrap())
}

/// The first and the last address of every special block, and those just outside.
#[test]
fn special_addresses_are_refused_up_to_their_edges() {
    let check = |addresses: &[&str], name: Option<&str>| {
        for address in addresses {
            assert_eq!(refused(address), name, "{address}");
        }
    };
    check(&["0.0.0.0", "0.255.255.255"], Some("local"));
    check(&["1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"], None);
    check(
        &["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255"],
        Some("private"),
    );
    check(&["100.64.0.0", "100.127.255.255"], Some("shared"));
    check(&["127.0.0.1", "127.255.255.255"], Some("loopback"));
    check(&["126.255.255.255", "128.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0"], None);
    check(&["169.254.0.0", "169.254.169.254", "169.254.255.255"], Some("link-local"));
    check(
        &["192.0.0.0", "192.0.0.9", "192.0.0.170", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.175.48.1"],
        Some("reserved"),
    );
    check(&["192.0.2.1", "198.51.100.255", "203.0.113.0"], Some("documentation"));
    check(&["198.18.0.0", "198.19.255.255"], Some("benchmarking"));
    check(&["198.17.255.255", "198.20.0.0", "223.255.255.255", "8.8.8.8"], None);
    check(&["224.0.0.1", "239.255.255.255"], Some("multicast"));
    check(&["240.0.0.0", "255.255.255.255"], Some("reserved"));

    check(&["::1"], Some("loopback"));
    check(
        &["::", "::7f00:1", "100::1", "100:0:0:1::1", "64:ff9b:1::a00:1", "5f00::1", "fec0::1", "4000::"],
        Some("reserved"),
    );
    check(&["2001::1", "2001:10::1", "2001:1ff:ffff::", "2620:4f:8000::1"], Some("reserved"));
    check(&["2001:db8::1", "3fff::1", "3fff:fff:ffff::"], Some("documentation"));
    check(&["2002:7f00:1::", "2002:808:808::"], Some("6to4"));
    check(&["fc00::1", "fdff::1"], Some("private"));
    check(&["fe80::1", "febf::1"], Some("link-local"));
    check(&["ff02::1"], Some("multicast"));
    check(&["2000::1", "2001:200::1", "2001:4860:4860::8888", "2003::1", "2606:4700::1", "3ffe::1"], None);
    // IPv4 in other clothes.
    check(&["::ffff:127.0.0.1", "64:ff9b::127.0.0.1"], Some("loopback"));
    check(&["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"], Some("link-local"));
    check(&["::ffff:8.8.8.8", "64:ff9b::8.8.8.8"], None);
}

#[test]
fn urls_are_https_and_public_unless_they_are_allowed() {
    let strict = Guard::default();
    let check = |guard: &Guard, url: &str, problem: Option<&str>| {
        let problem_found = guard.check(url).err().map(|problem| problem.to_string());
        assert_eq!(problem_found.as_deref(), problem, "{url}");
    };
    for fine in ["https://example.com/h?a=b", "https://example.com:8443", "https://8.8.8.8/", "https://[2606:4700::1]/"]
    {
        check(&strict, fine, None);
    }
    let http = Some("must be an https URL, not an http one");
    check(&strict, "http://example.com/", http);
    check(&strict, "http://127.0.0.1/", http);
    check(&strict, "ftp://example.com/", Some("must be an https URL, not one of another scheme"));
    check(&strict, "example.com/hook", Some("must be an https URL, not something else"));
    check(&strict, "", Some("must be an https URL, not something else"));
    let credentials = Some("must be a URL without user name and password, not one with them");
    check(&strict, "https://user@example.com/", credentials);
    check(&strict, "https://:p@example.com/", credentials);
    let loopback = Some("must be a URL on the public Internet, not one of a loopback address");
    // The forms in which an address may be written are many; the parser of URLs knows them.
    for written in
        ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "017700000001", "127.0.0.1.", "[::1]", "[::ffff:7f00:1]"]
    {
        check(&strict, &format!("https://{written}/"), loopback);
    }
    let long = format!("https://example.com/{}", "a".repeat(2048));
    check(&strict, &long, Some("must be a URL of at most 2048 bytes, not one of 2068"));
    let umlauts = format!("https://example.com/{}", "é".repeat(1000));
    check(&strict, &umlauts, Some("must be a URL of at most 2048 bytes, not a longer one once it is escaped"));

    let lenient = Guard::new(vec![
        AllowedHost::Network("127.0.0.0/8".parse().unwrap()),
        AllowedHost::Name("hooks.internal".to_owned()),
    ]);
    for fine in
        ["http://127.0.0.1:80/", "https://[::ffff:127.0.0.1]/", "http://HOOKS.internal./", "https://hooks.internal/"]
    {
        check(&lenient, fine, None);
    }
    check(&lenient, "http://more.hooks.internal/", http);
    check(&lenient, "https://10.0.0.1/", Some("must be a URL on the public Internet, not one of a private address"));
    let private = "10.0.0.1".parse().unwrap();
    assert!(lenient.admits("hooks.internal", private) && !lenient.admits("example.com", private));
    assert!(
        lenient.admits("example.com", "127.0.0.1".parse().unwrap()) && lenient.admits("a", "8.8.8.8".parse().unwrap())
    );
    assert_eq!(lenient.check("https://example.com/a#b").unwrap().as_str(), "https://example.com/a");
}
