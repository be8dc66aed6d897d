//! What the client prints: tables for people, JSON for programs.

mod fields;
mod json;
mod table;

use std::io::{self, IsTerminal, Write};

use clap::{Args, ValueEnum};

pub(super) use self::fields::{Fields, issuer, key, owner, tenant, verdict};
pub(super) use self::table::Column;
use self::table::Table;
pub(super) use self::table::{CALLER_COLUMNS, CONTEXT_COLUMNS, KEY_COLUMNS, TENANT_COLUMNS};
use super::failure::{Exit, Failure};

/// How replies are printed.
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// How to print [default: table on a terminal, json elsewhere]
    #[arg(short, long, value_name = "FORMAT", help_heading = "Output")]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// For programs, with names and forms as protobuf's JSON has them
    Json,
}

impl OutputArgs {
    pub(super) fn format(&self) -> Format {
        format_or_default(self.output)
    }

    /// Prints one object.
    pub(super) fn print(&self, object: &Fields) -> Result<(), Failure> {
        print(self.format(), object)
    }
}

/// The format that was asked for, or that suits standard output.
pub(super) fn format_or_default(asked_for: Option<Format>) -> Format {
    asked_for.unwrap_or(if io::stdout().is_terminal() { Format::Table } else { Format::Json })
}

/// Prints one object.
pub(super) fn print(format: Format, object: &Fields) -> Result<(), Failure> {
    let text = text(format, object);
    let mut out = io::stdout().lock();
    unless_closed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Says that what was printed has not come about.
pub(super) fn note_dry_run() {
    eprintln!("keyward: the server would do this; nothing was changed (--dry-run)");
}

/// One object as text.
pub(super) fn text(format: Format, object: &Fields) -> String {
    match format {
        Format::Table => object.shown(),
        Format::Json => json::pretty(object),
    }
}

/// Prints a list as it comes, page by page.
#[derive(Debug)]
pub(super) struct ListPrinter {
    format: Format,
    table: Table,
    has_begun: bool,
    has_any: bool,
}

impl ListPrinter {
    pub(super) fn new(format: Format, columns: &'static [Column]) -> Self {
        Self { format, table: Table::new(columns), has_begun: false, has_any: false }
    }

    /// Prints a page. Returns whether more is wanted: a reader such as `head` may have closed the pipe.
    pub(super) fn page(&mut self, page: &[Fields]) -> Result<bool, Failure> {
        let mut text = String::new();
        match self.format {
            Format::Table => {
                self.table.page(page, &mut text);
                self.has_any |= !page.is_empty();
            }
            Format::Json => {
                if !self.has_begun {
                    text.push('[');
                }
                for object in page {
                    text.push_str(if self.has_any { ",\n" } else { "\n" });
                    text.push_str(&json::line(object));
                    self.has_any = true;
                }
            }
        }
        self.has_begun = true;
        write_out(&text)
    }

    /// Whether nothing was in any page.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_any
    }

    /// Ends the list.
    pub(super) fn end(self) -> Result<(), Failure> {
        match self.format {
            Format::Json => write_out(if self.has_any { "\n]\n" } else { "]\n" }).map(drop),
            Format::Table => Ok(()),
        }
    }
}

/// Whether it could be written. `false`: the reader has closed the pipe.
fn write_out(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).map_err(not_written),
    }
}

fn unless_closed(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(not_written),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn not_written(error: io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("standard output cannot be written: {error}"))
}
