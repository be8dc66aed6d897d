//! `keyward completions` and `keyward man`, both from the definition of the command line.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;
use super::client::VARIABLES;
use super::failure::{EXIT_CODES, Exit, Failure};

/// The commands that have the exit codes of the client.
const CLIENT_COMMANDS: [&str; 4] = ["key", "tenant", "caller", "context"];

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Where to write keyward.1 and a page for each command, such as /usr/local/share/man/man1
    /// [default: keyward.1 alone, to standard output]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints a script that completes commands.
pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let shell = match &*args.shell {
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => Shell::Bash,
    };
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "keyward", &mut script);
    print(&script)
}

/// Writes the manual.
pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut command = Cli::command().name("keyward");
    // Fills in the names of subcommands.
    command.build();
    match &args.dir {
        Some(dir) => {
            fs::create_dir_all(dir).map_err(|error| of_file(dir, &error))?;
            write_pages(&command, "keyward", dir)
        }
        None => print(&page(&command, "keyward")?),
    }
}

fn write_pages(command: &Command, name: &str, dir: &Path) -> Result<(), Failure> {
    let path = dir.join(format!("{name}.1"));
    fs::write(&path, page(command, name)?).map_err(|error| of_file(&path, &error))?;
    let subcommands = command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help");
    for one in subcommands {
        write_pages(one, &format!("{name}-{}", one.get_name()), dir)?;
    }
    Ok(())
}

fn page(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    let mut page = vec![];
    Man::new(command.clone()).render(&mut page)?;
    let of_client = name.split('-').nth(1).is_none_or(|group| CLIENT_COMMANDS.contains(&group));
    if of_client {
        writeln!(page, ".SH \"EXIT STATUS\"")?;
        if name == "keyward" {
            writeln!(
                page,
                "Of {}. Other commands have 0 for done, 1 for failed and 2 for a wrong command line; health has its own.",
                CLIENT_COMMANDS.join(", ")
            )?;
        }
        for (code, meaning) in EXIT_CODES {
            writeln!(page, ".TP\n\\fB{code}\\fR\n{meaning}")?;
        }
        writeln!(page, ".SH ENVIRONMENT")?;
        for (name, meaning) in VARIABLES {
            writeln!(page, ".TP\n\\fB{name}\\fR\n{meaning}")?;
        }
    }
    Ok(page)
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn of_file(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{}: {error}", path.display()))
}
