//! The tables of `docs/settings.md` must equal the command line's settings.

use std::fmt::Write as _;

use super::*;

const PAGE: &str = include_str!("../../docs/settings.md");

/// The commands whose settings the page lists, each with its title. The empty name stands for the settings of all
/// commands.
const COMMANDS: [(&str, &str); 8] = [
    ("serve", "`paybridge serve` (`worker` takes all but `--grpc-…` and `--max-streams-per-organization`)"),
    ("migrate", "`paybridge migrate` (`organization`, `token` and `jobs` take `--database-url`, too)"),
    ("adopt", "`paybridge adopt`"),
    ("dev", "`paybridge dev`"),
    ("demo", "`paybridge demo`"),
    ("sandbox", "`paybridge sandbox`"),
    ("chaos", "`paybridge chaos`"),
    ("", "Every command"),
];

fn table(command: &clap::Command) -> String {
    let mut text = String::from("| flag | environment | default | meaning |\n|---|---|---|---|\n");
    let is_listed = |arg: &&clap::Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    for arg in command.get_arguments().filter(is_listed) {
        let flag = arg.get_long().expect("every setting is a flag");
        let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
        let default = arg.get_default_values().first().map(|value| value.to_string_lossy()).unwrap_or_default();
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.trim_end_matches('.').replace('|', "\\|");
        writeln!(text, "| `--{flag}` | {variable} | {default} | {help} |").expect("a String takes all");
    }
    text
}

#[test]
fn the_page_lists_every_setting_as_the_command_line_has_it() {
    let command = arguments::Cli::command();
    for subcommand in command.get_subcommands().map(clap::Command::get_name) {
        let listed = COMMANDS.iter().any(|(name, _)| *name == subcommand);
        assert!(
            listed || matches!(subcommand, "worker" | "organization" | "token" | "jobs"),
            "docs/settings.md does not list {subcommand}"
        );
    }
    let flags = |name: &str| -> Vec<String> {
        let command = command.find_subcommand(name).unwrap_or_else(|| panic!("there is a command {name}"));
        command.get_arguments().filter_map(clap::Arg::get_long).map(str::to_owned).collect()
    };
    let is_shared = |flag: &String| !flag.starts_with("grpc-") && flag != "max-streams-per-organization";
    assert_eq!(flags("worker"), flags("serve").into_iter().filter(is_shared).collect::<Vec<_>>());
    let mut expected = String::new();
    for (name, title) in COMMANDS {
        let command = if name.is_empty() { Some(&command) } else { command.find_subcommand(name) };
        let command = command.unwrap_or_else(|| panic!("there is a command {name}"));
        write!(expected, "**{title}**\n\n{}\n", table(command)).expect("a String takes all");
    }
    assert!(PAGE.contains(expected.trim_end()), "docs/settings.md must contain exactly this:\n\n{expected}");
}
