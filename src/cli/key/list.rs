//! `keyward key list`, and what it shares with `keyward caller list`.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};

use super::super::client::Session;
use super::super::failure::Failure;
use super::super::print::{self, Column, ListPrinter, OutputArgs};
use super::fields::{pair, pairs};
use crate::remote::wire;
use crate::util::progress::Count;

/// The keys of a page where all are fetched: as many as the server gives.
pub(in crate::cli) const PAGE_SIZE_MAX: i32 = 1_000;

#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    /// Only those in this state; may be repeated
    #[arg(long = "state", value_name = "STATE")]
    states: Vec<StateWord>,
    /// Only those of exactly this owner
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    owner: String,
    /// Only those with exactly this label; may be repeated: all of them
    #[arg(short, long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Deleted ones too, where no state is asked for
    #[arg(long)]
    show_deleted: bool,
    #[command(flatten)]
    pages: PageArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Which pages of a list.
#[derive(Debug, Args)]
pub(in crate::cli) struct PageArgs {
    /// All pages. On a terminal, a count is shown while they are fetched
    #[arg(long, conflicts_with = "page_token")]
    pub(in crate::cli) all: bool,
    /// At most this many in a page, up to 1000 [default: 50; with --all 1000]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..=1_000))]
    pub(in crate::cli) page_size: Option<i32>,
    /// Go on where another page ended, with the same filters
    #[arg(long, value_name = "TOKEN", default_value = "", hide_default_value = true)]
    pub(in crate::cli) page_token: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StateWord {
    /// It works, unless it has expired
    Active,
    /// It is refused until it is enabled
    Disabled,
    /// It is refused for ever
    Revoked,
    /// It was deleted, and is kept for a while
    Deleted,
}

impl PageArgs {
    /// The size to ask for. 0: the server's default.
    pub(in crate::cli) fn size(&self) -> i32 {
        self.page_size.unwrap_or(if self.all { PAGE_SIZE_MAX } else { 0 })
    }
}

/// Lists keys.
pub(in crate::cli) fn list(
    session: Session,
    tenant: String,
    args: ListArgs,
    columns: &'static [Column],
) -> Result<(), Failure> {
    let state = |word: &StateWord| match word {
        StateWord::Active => wire::State::Active.into(),
        StateWord::Disabled => wire::State::Disabled.into(),
        StateWord::Revoked => wire::State::Revoked.into(),
        StateWord::Deleted => wire::State::Deleted.into(),
    };
    let selector = wire::KeySelector {
        tenant,
        states: args.states.iter().map(state).collect(),
        owner: args.owner,
        labels: pairs(args.labels),
        key_ids: vec![],
    };
    let (pages, show_deleted) = (args.pages, args.show_deleted);
    let printer = ListPrinter::new(args.output.format(), columns);
    session.run(async |client| {
        print_pages(printer, &pages, "keys", async |page_token| {
            let page_size = pages.size();
            let selector = Some(selector.clone());
            let request = wire::ListKeysRequest { selector, page_size, page_token, show_deleted };
            let page = client.list_keys(request).await?;
            Ok((page.keys.iter().map(print::key).collect(), page.next_page_token))
        })
        .await
    })
}

/// Prints one page, or all.
pub(in crate::cli) async fn print_pages(
    mut printer: ListPrinter,
    pages: &PageArgs,
    what: &'static str,
    fetch: impl AsyncFn(String) -> Result<(Vec<print::Fields>, String), Failure>,
) -> Result<(), Failure> {
    let mut count = Count::begin(what);
    let mut token = pages.page_token.clone();
    loop {
        let (page, next) = fetch(token).await?;
        if !count.aside(|| printer.page(&page))? {
            return Ok(());
        }
        count.advance(page.len() as u64);
        token = next;
        if token.is_empty() || !pages.all {
            break;
        }
    }
    drop(count);
    let is_empty = printer.is_empty();
    printer.end()?;
    if is_empty && token.is_empty() && std::io::stdout().is_terminal() {
        eprintln!("keyward: there are no such {what}");
    }
    if !token.is_empty() {
        eprintln!("keyward: there are more {what}: --all, or the next page with --page-token {token}");
    }
    Ok(())
}
