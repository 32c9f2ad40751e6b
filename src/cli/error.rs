//! How a command fails: one sentence on stderr and an exit code that scripts can tell apart.

use crate::db::StoreError;

/// Why a command did not do what it was asked. `Display` is the whole sentence that the user reads.
///
/// The exit codes from 64 to 78 are those of BSD's `sysexits.h`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// The request was understood and not granted: a name is taken, a plan does not allow it. Exit code 1.
    #[error("{0}")]
    Refused(String),
    /// A run was made and ended without output: it failed, or somebody cancelled it. Exit code 3.
    #[error("{0}")]
    Failed(String),
    /// The command line makes no sense. Exit code 2, as for arguments that do not parse.
    #[error("{0}")]
    Usage(String),
    /// All of the output is there, and after something that does not count. Exit code 65 (`EX_DATAERR`).
    #[error("{0}")]
    StartedOver(String),
    /// A database, a queue or a server does not answer. Exit code 69 (`EX_UNAVAILABLE`): trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// The program itself failed. Exit code 70 (`EX_SOFTWARE`).
    #[error("{0}")]
    Software(String),
    /// The configuration is wrong. Exit code 78 (`EX_CONFIG`): trying again does not help.
    #[error("{0}")]
    Config(String),
    /// A run missed its deadline, or its answer did not come in time. Exit code 124, as of `timeout` (GNU coreutils).
    #[error("{0}")]
    TimedOut(String),
    /// A signal ended the command. Exit code 128 and the signal's number, as a shell has it: 130 for Ctrl-C.
    #[error("{sentence}")]
    Interrupted { signal: u8, sentence: String },
}

impl CliError {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Refused(_) => 1,
            CliError::Usage(_) => 2,
            CliError::Failed(_) => 3,
            CliError::StartedOver(_) => 65,
            CliError::Unavailable(_) => 69,
            CliError::Software(_) => 70,
            CliError::Config(_) => 78,
            CliError::TimedOut(_) => 124,
            CliError::Interrupted { signal, .. } => 128_u8.saturating_add(*signal),
        }
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(sentence) => CliError::Refused(sentence),
            StoreError::Unavailable { sentence, source } => {
                // The sentence is for the user; what the driver said helps whoever raised the log level.
                tracing::debug!(error = %source, "the database failed");
                CliError::Unavailable(sentence)
            }
        }
    }
}
