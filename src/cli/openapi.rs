//! `openapi`: the document of the HTTP API, for generators of clients and for reading.

use super::{error::CliError, output::Output};
use crate::http;

/// Prints the document over many lines; with `--json` on one.
pub fn run(output: Output) -> Result<(), CliError> {
    let document = http::document();
    let text = document
        .to_pretty_json()
        .map_err(|error| CliError::Software(format!("the document cannot be written as JSON: {error}")))?;
    output.emit(&document, || text)
}
