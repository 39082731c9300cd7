//! All commands and options as one page, `docs/options.md`.

use clap::{Arg, ArgAction, Command};
use std::fmt::Write;

const HEAD: &str = "# Commands and options

`edge config options` prints this page. A key of the configuration file (`/etc/edge/config.yaml`, and `/etc/edge/config.yaml.d/*.yaml`) is the name of a flag
without its dashes: `node-name: a` for `--node-name=a`; `key+:` adds to a list. Flags win over the environment, which wins over the
files. `edge config show server` shows which value comes from where.

Exit codes of all commands: 0 success, 1 failure, 2 wrong usage or configuration.
";

/// The page.
pub(crate) fn render(root: &mut Command) -> String {
    root.build();
    let mut page = HEAD.to_owned();
    for command in root.get_subcommands() {
        section(&mut page, command, "edge", 2);
    }
    page
}

fn section(page: &mut String, command: &Command, above: &str, level: usize) {
    // `edge config show server` has the options of `edge server`
    let is_repeated = above.starts_with("edge config ");
    if command.is_hide_set() || command.get_name() == "help" || is_repeated {
        return;
    }
    let name = format!("{above} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    // writing to a String cannot fail
    let _ = write!(page, "\n{} {name}\n\n{}\n", "#".repeat(level), about.trim());
    for argument in command.get_positionals().filter(|a| !a.is_hide_set()) {
        let _ = write!(page, "\n`{argument}`: {}\n", help(argument));
    }
    let mut headings: Vec<Option<&str>> = Vec::new();
    for option in options(command) {
        if !headings.contains(&option.get_help_heading()) {
            headings.push(option.get_help_heading());
        }
    }
    for heading in headings {
        let title = heading.unwrap_or("Option");
        let _ = write!(page, "\n| {title} | Default | Variable | |\n|---|---|---|---|\n");
        for option in options(command).filter(|o| o.get_help_heading() == heading) {
            let _ =
                writeln!(page, "| {} | {} | {} | {} |", flag(option), default(option), variable(option), help(option));
        }
    }
    for below in command.get_subcommands() {
        section(page, below, &name, level + 1);
    }
}

fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_opts()
        .chain(command.get_arguments().filter(|a| is_switch(a)))
        .filter(|a| !a.is_hide_set() && !["help", "version"].contains(&a.get_id().as_str()))
}

fn is_switch(argument: &Arg) -> bool {
    !argument.is_positional() && !argument.get_action().takes_values()
}

fn flag(option: &Arg) -> String {
    let short = option.get_short().map(|c| format!("`-{c}`, ")).unwrap_or_default();
    let value = match option.get_action() {
        ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count => String::new(),
        _ => {
            let names = option.get_value_names().unwrap_or_default();
            names.first().map(|name| format!("={}", name.as_str())).unwrap_or_default()
        }
    };
    let also = option.get_visible_aliases().unwrap_or_default();
    let also: String = also.iter().map(|alias| format!(", `--{alias}`")).collect();
    format!("{short}`--{}{value}`{also}", option.get_long().unwrap_or_default())
}

fn default(option: &Arg) -> String {
    let values: Vec<_> = option.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
    if values.is_empty() || is_switch(option) { String::new() } else { code(&values.join(",")) }
}

fn variable(option: &Arg) -> String {
    option.get_env().map(|name| code(&name.to_string_lossy())).unwrap_or_default()
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

/// The help in one line, with the values that are possible.
fn help(argument: &Arg) -> String {
    let text = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let values: Vec<String> = match argument.get_action().takes_values() {
        true => argument.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect(),
        false => Vec::new(),
    };
    if values.is_empty() { text } else { format!("{text} ({})", values.join(", ")) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_page_is_what_the_program_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/options.md");
        let page = render(&mut crate::cmd::Cli::command());
        assert!(page.contains("`--cluster-cidr=CIDR`") && page.contains("## edge token create"), "{page}");
        let known = std::fs::read_to_string(path).unwrap_or_default();
        if std::env::var_os("EDGE_WRITE_DOCS").is_some() {
            std::fs::write(path, page).unwrap();
        } else if page != known {
            let line = page.lines().zip(known.lines()).find(|(a, b)| a != b);
            panic!("{path} is not up to date ({line:?}): run `edge config options > docs/options.md`");
        }
    }
}
