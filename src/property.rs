//! How much the property tests of this crate try.

use proptest::test_runner::Config;

/// So many cases, unless `PROPTEST_CASES` asks for another number.
pub(crate) fn cases(cases: u32) -> Config {
    let config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { Config { cases, ..config } }
}
