//! Writes what packages have besides the program, from the program's own arguments and from the sample config:
//! `manual FOLDER SECONDS` makes `man1/` (a page for each command), `man5/` (the config file) and `completions/`.
//!
//! It is an example of the crate, so that neither the program nor its build needs what this uses.

mod config_page;

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use jiff::Timestamp;

const NAME: &str = env!("CARGO_PKG_NAME");
const VERSION: &str = env!("CARGO_PKG_VERSION");
const MANUAL: &str = "Disk exporter";

fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: manual FOLDER SECONDS");
    let folder = env::args_os().nth(1).map(PathBuf::from).ok_or_else(usage)?;
    // The day of the release is at the foot of the pages.
    let time = env::args().nth(2).and_then(|text| Timestamp::from_second(text.parse().ok()?).ok()).ok_or_else(usage)?;
    let date = time.strftime("%Y-%m-%d").to_string();
    let [man1, man5, completions] = ["man1", "man5", "completions"].map(|name| folder.join(name));
    for folder in [&man1, &man5, &completions] {
        fs::create_dir_all(folder)?;
    }
    let mut command = coriolis_ovm_exporter::testing::command().disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut visible(&command), NAME, &completions)?;
    }
    // clap_complete spells a name with dashes in two ways, so nothing after a command is completed (clap issue 6421).
    let path = completions.join(format!("{NAME}.bash"));
    let (good, bad) = (NAME.replace('-', "__"), NAME.replace('-', "__subcmd__"));
    fs::write(&path, fs::read_to_string(&path)?.replace(&bad, &good))?;
    command.build();
    write_pages(&command, &date, &man1)?;
    fs::write(man5.join(format!("{NAME}.toml.5")), config_page::page(include_str!("../config.example.toml"), &date))
}

/// The command without those that only the program itself uses: completions would offer them.
fn visible(command: &Command) -> Command {
    let commands = command.get_subcommands().filter(|it| !it.is_hide_set()).cloned();
    Command::new(NAME).version(VERSION).args(command.get_arguments().cloned()).subcommands(commands)
}

/// Writes the page of `command`, and those of its commands.
fn write_pages(command: &Command, date: &str, folder: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let page = Man::new(command.clone()).section("1").source(format!("{NAME} {VERSION}"));
    let page = page.date(date).manual(MANUAL);
    let mut text = Vec::new();
    page.render(&mut text)?;
    if name == NAME {
        text.extend_from_slice(see_also().as_bytes());
    }
    fs::write(folder.join(format!("{name}.1")), text)?;
    for command in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        write_pages(command, date, folder)?;
    }
    Ok(())
}

fn see_also() -> String {
    let mut page = roff::Roff::new();
    page.control("SH", ["FILES"]);
    page.control("TP", []).text([roff::bold(config_page::PATH)]);
    page.text([roff::roman(format!("The config of the service: {NAME}.toml(5)"))]);
    page.to_roff()
}
