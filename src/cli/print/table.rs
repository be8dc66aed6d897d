//! Lists as tables: one row for each object. On a terminal that is too narrow, columns that matter less are
//! left out and texts are cut; what identifies an object is never cut.

use super::fields::Fields;
use crate::util::terminal;

/// A column of a list.
#[derive(Debug)]
pub(in crate::cli) struct Column {
    /// Its head.
    pub(super) head: &'static str,
    /// The field that it shows.
    pub(super) field: &'static str,
    /// How important it is: 0 is always there, and the highest goes first.
    pub(super) rank: u8,
    /// Whether it may be cut.
    pub(super) may_cut: bool,
}

/// The columns of keys.
pub(in crate::cli) const KEY_COLUMNS: &[Column] = &[
    Column { head: "KEY_ID", field: "key_id", rank: 0, may_cut: false },
    Column { head: "NAME", field: "display_name", rank: 1, may_cut: true },
    Column { head: "OWNER", field: "owner", rank: 2, may_cut: true },
    Column { head: "STATE", field: "state", rank: 0, may_cut: false },
    Column { head: "EXPIRES", field: "expire_time", rank: 3, may_cut: false },
    Column { head: "SCOPES", field: "scopes", rank: 4, may_cut: true },
    Column { head: "HINT", field: "hint", rank: 5, may_cut: false },
];

/// The columns of callers: what they may do is what they are looked up for.
pub(in crate::cli) const CALLER_COLUMNS: &[Column] = &[
    Column { head: "KEY_ID", field: "key_id", rank: 0, may_cut: false },
    Column { head: "NAME", field: "display_name", rank: 2, may_cut: true },
    Column { head: "STATE", field: "state", rank: 0, may_cut: false },
    Column { head: "ROLES", field: "scopes", rank: 1, may_cut: true },
    Column { head: "EXPIRES", field: "expire_time", rank: 3, may_cut: false },
    Column { head: "HINT", field: "hint", rank: 4, may_cut: false },
];

/// The columns of tenants.
pub(in crate::cli) const TENANT_COLUMNS: &[Column] = &[
    Column { head: "TENANT", field: "tenant", rank: 0, may_cut: false },
    Column { head: "NAME", field: "display_name", rank: 1, may_cut: true },
    Column { head: "STATE", field: "state", rank: 0, may_cut: false },
    Column { head: "PREFIX", field: "secret_prefix", rank: 2, may_cut: false },
    Column { head: "CREATED", field: "create_time", rank: 3, may_cut: false },
];

/// The columns of contexts.
pub(in crate::cli) const CONTEXT_COLUMNS: &[Column] = &[
    Column { head: "", field: "current", rank: 0, may_cut: false },
    Column { head: "NAME", field: "name", rank: 0, may_cut: false },
    Column { head: "SERVER", field: "server", rank: 1, may_cut: true },
    Column { head: "TENANT", field: "tenant", rank: 3, may_cut: false },
    Column { head: "TLS", field: "tls", rank: 4, may_cut: false },
    Column { head: "KEY_FILE", field: "key_file", rank: 2, may_cut: true },
];

/// Columns between two columns.
const GAP: usize = 2;
/// A text is cut to no fewer columns than this.
const CUT_MIN: usize = 8;
/// What stands for the rest of a text.
const CUT_MARK: char = '…';

/// A table that grows by pages. Its columns only get wider.
#[derive(Debug)]
pub(super) struct Table {
    columns: &'static [Column],
    widths: Vec<usize>,
    has_head: bool,
    terminal: Option<usize>,
}

impl Table {
    pub(super) fn new(columns: &'static [Column]) -> Self {
        let widths = columns.iter().map(|column| column.head.len()).collect();
        Self { columns, widths, has_head: false, terminal: terminal::columns() }
    }

    /// Adds the rows of a page to a text, below the heads if they are the first.
    pub(super) fn page(&mut self, page: &[Fields], text: &mut String) {
        let cells = |object: &Fields| self.columns.iter().map(|column| object.cell(column.field)).collect::<Vec<_>>();
        let rows: Vec<_> = page.iter().map(cells).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = terminal::width(cell).max(*width);
            }
        }
        let widths = self.fitted();
        if !self.has_head {
            let heads: Vec<_> = self.columns.iter().map(|column| column.head.to_owned()).collect();
            push_row(&heads, &widths, text);
            self.has_head = true;
        }
        rows.iter().for_each(|row| push_row(row, &widths, text));
    }

    /// The width of each column where it has to fit into the terminal. 0: it is left out.
    fn fitted(&self) -> Vec<usize> {
        let mut widths = self.widths.clone();
        let Some(terminal) = self.terminal else { return widths };
        let ranks = self.columns.iter().map(|column| column.rank).max().unwrap_or_default();
        // First without columns, down to those that may be cut to fit what is left.
        for rank in (1..=ranks).rev() {
            if least(self.columns, &widths) <= terminal {
                break;
            }
            for (width, _) in widths.iter_mut().zip(self.columns).filter(|(_, column)| column.rank == rank) {
                *width = 0;
            }
        }
        while total(&widths) > terminal {
            let longest = widths.iter_mut().zip(self.columns).filter(|(_, column)| column.may_cut);
            let Some((longest, _)) = longest.max_by_key(|(width, _)| **width).filter(|(width, _)| **width > CUT_MIN)
            else {
                break;
            };
            *longest -= 1;
        }
        widths
    }
}

fn total(widths: &[usize]) -> usize {
    widths.iter().filter(|width| **width > 0).map(|width| width + GAP).sum::<usize>().saturating_sub(GAP)
}

/// The least that columns of these widths can take.
fn least(columns: &[Column], widths: &[usize]) -> usize {
    let least = |(column, width): (&Column, &usize)| if column.may_cut { (*width).min(CUT_MIN) } else { *width };
    total(&columns.iter().zip(widths).map(least).collect::<Vec<_>>())
}

fn push_row(cells: &[String], widths: &[usize], text: &mut String) {
    let mut gap = 0;
    for (cell, width) in cells.iter().zip(widths).filter(|(_, width)| **width > 0) {
        text.extend(std::iter::repeat_n(' ', gap));
        let cut = cut(cell, *width);
        gap = width - terminal::width(&cut) + GAP;
        text.push_str(&cut);
    }
    // Nothing stands behind the last cell that is not empty.
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}

fn cut(cell: &str, width: usize) -> String {
    if terminal::width(cell) <= width {
        return cell.to_owned();
    }
    let mut kept = String::new();
    for c in cell.chars() {
        let with = format!("{kept}{c}");
        if terminal::width(&with) >= width {
            break;
        }
        kept = with;
    }
    kept.push(CUT_MARK);
    kept
}

#[cfg(test)]
mod tests {
    use super::super::fields::key;
    use super::*;
    use crate::remote::wire;

    fn shown(terminal: Option<usize>) -> String {
        let of = |id: &str, name: &str, owner: &str| {
            key(&wire::Key {
                key_id: id.into(),
                display_name: name.into(),
                owner: owner.into(),
                state: wire::State::Active.into(),
                ..Default::default()
            })
        };
        let page = [of("zapier", "Zapier for the accounts of 2026", "customer-7"), of("kunde", "顧客管理システム", "")];
        let mut text = String::new();
        Table { terminal, ..Table::new(KEY_COLUMNS) }.page(&page, &mut text);
        text
    }

    #[test]
    fn columns_are_aligned_by_what_the_terminal_shows() {
        assert_eq!(
            shown(None),
            "KEY_ID  NAME                             OWNER       STATE   EXPIRES  SCOPES  HINT\n\
             zapier  Zapier for the accounts of 2026  customer-7  active\n\
             kunde   顧客管理システム                             active\n"
        );
    }

    #[test]
    fn a_narrow_terminal_has_fewer_columns_and_whole_ids() {
        assert_eq!(
            shown(Some(40)),
            "KEY_ID  NAME          OWNER       STATE\n\
             zapier  Zapier for …  customer-7  active\n\
             kunde   顧客管理シ…               active\n"
        );
        assert_eq!(shown(Some(10)), "KEY_ID  STATE\nzapier  active\nkunde   active\n");
        assert!(shown(Some(60)).lines().all(|line| terminal::width(line) <= 60));
    }
}
