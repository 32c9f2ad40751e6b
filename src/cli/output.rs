//! Where a command's data goes: stdout, as text for people or as JSON for programs. Messages go to stderr.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use super::error::CliError;

/// How a command shows its data.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// One line of JSON instead of text.
    pub json: bool,
}

impl Output {
    /// Writes `value` as JSON, or else what `human` makes of it, and ends the line.
    ///
    /// A reader that has gone (`| head`) is not an error: it has what it wanted.
    pub fn emit(&self, value: &impl Serialize, human: impl FnOnce() -> String) -> Result<(), CliError> {
        self.emit_to(&mut io::stdout().lock(), value, human)
    }

    fn emit_to(
        &self,
        out: &mut impl Write,
        value: &impl Serialize,
        human: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        let mut text = if self.json {
            serde_json::to_string(value)
                .map_err(|error| CliError::Software(format!("the result cannot be written as JSON: {error}")))?
        } else {
            human()
        };
        // An empty list has nothing to say to a person, not even an empty line.
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(CliError::Software(format!("stdout cannot be written: {error}")))
            }
            _ => Ok(()),
        }
    }
}

/// Lays rows out in columns under their titles, two spaces apart; the last column is left unpadded.
pub fn table<const N: usize>(titles: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = rows.into_iter().collect();
    let mut widths = titles.map(width);
    for row in &rows {
        for (column, cell) in widths.iter_mut().zip(row) {
            *column = width(cell).max(*column);
        }
    }
    let mut text = line(&widths, &titles);
    for row in &rows {
        text.push_str(&line(&widths, row));
    }
    text
}

fn line<const N: usize>(widths: &[usize; N], cells: &[impl AsRef<str>; N]) -> String {
    let mut line = String::new();
    for (cell, column) in cells.iter().zip(widths) {
        let cell = cell.as_ref();
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', column.saturating_sub(width(cell)) + 2));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// Characters, which is what a terminal shows for all but combining and wide ones.
fn width(cell: &str) -> usize {
    cell.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refuses every write in the given way.
    struct Refusing(ErrorKind);

    impl Write for Refusing {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn people_read_text_and_programs_read_json() {
        let shown = |json| {
            let mut out = Vec::new();
            Output { json }.emit_to(&mut out, &["é"], || "un\n".to_owned()).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(false), "un\n");
        assert_eq!(shown(true), "[\"é\"]\n");
    }

    #[test]
    fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
        let write = |kind| Output { json: true }.emit_to(&mut Refusing(kind), &1, String::new);
        assert_eq!(write(ErrorKind::BrokenPipe), Ok(()));
        assert!(matches!(write(ErrorKind::StorageFull), Err(CliError::Software(_))));
    }

    #[test]
    fn columns_line_up_whatever_the_alphabet() {
        let rows = [["Été".to_owned(), "1".to_owned()], ["a long name".to_owned(), "22".to_owned()]];
        assert_eq!(table(["NAME", "ID"], rows), "NAME         ID\nÉté          1\na long name  22\n");
    }

    #[test]
    fn an_empty_table_still_has_its_titles() {
        assert_eq!(table(["NAME", "ID"], []), "NAME  ID\n");
    }
}
