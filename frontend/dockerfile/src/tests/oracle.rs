//! Two other parsers on the golden files, restricted to where they are right.

use dockerfile_parser::Instruction as Classic;
use parse_dockerfile::Instruction as Theirs;

use super::{cases, parse_text};
use crate::{Command, CopyInstr, CopySource, Instruction, InstructionKind as Kind};

/// Files on which `parse-dockerfile` 0.1.9 differs from BuildKit, and how.
const MODERN_DIFFERS: &[(&str, &str)] = &[
    ("bare_commands", "refuses an instruction without a command"),
    ("directive_indented", "takes an indented directive for a comment"),
    ("doubled_escape", "joins lines at a doubled escape character"),
    ("tripled_escape", "joins lines at a tripled escape character"),
    ("escape_backtick", "joins lines at a doubled escape character"),
    ("flags", "splits an escaped blank in a flag"),
    ("flags_double_dash", "does not know that -- ends flags"),
    ("healthcheck", "refuses HEALTHCHECK NONE []"),
    ("heredoc_blank_after_opener", "does not take << EOF for a heredoc"),
    ("heredoc_copy_name_with_blank_split", "refuses a blank in a delimiter"),
    ("heredoc_not_in_json", "takes << in a JSON array for a path"),
    ("heredoc_quoted", "refuses a blank in a delimiter"),
    ("heredoc_run_command", "finds a heredoc only as the first word"),
    ("heredoc_same_name_twice", "does not look bodies up by name"),
    ("json_forms", "refuses ENTRYPOINT [] and RUN []"),
    ("onbuild_doubtful_trigger", "checks triggers"),
    ("only_args", "refuses a file without FROM"),
];

/// Files on which `dockerfile-parser` 0.9 differs from BuildKit, by what it does not know.
const CLASSIC_DIFFERS: &[(&str, &[&str])] = &[
    ("several names in ARG", &["arg_forms", "lint_descriptions", "only_args"]),
    ("an instruction without a command", &["bare_commands"]),
    ("blanks other than space and tab", &["blanks_of_all_kinds", "cr_only_is_a_blank"]),
    ("a byte order mark", &["bom"]),
    (
        "blank lines and comments between continued lines",
        &["comment_ends_continuation", "empty_continuation"],
    ),
    ("continuations inside a word", &["continuation_inside_word", "escape_alone_first"]),
    (
        "the escape directive",
        &["directive_indented", "directive_repeated_later", "directive_syntax", "escape_backtick"],
    ),
    ("a doubled escape character", &["doubled_escape", "tripled_escape"]),
    ("words of ENV and LABEL", &["env_forms", "env_quotes_unclosed", "label_forms", "unicode"]),
    ("flags without values, and --", &["flags_double_dash", "flags_empty_values"]),
    (
        "heredocs",
        &[
            "heredoc_blank_after_opener",
            "heredoc_chomp",
            "heredoc_copy_name_with_blank_split",
            "heredoc_copy_several",
            "heredoc_crlf",
            "heredoc_empty",
            "heredoc_ends_file",
            "heredoc_flags_and_continuation",
            "heredoc_instruction_like_body",
            "heredoc_nested_names",
            "heredoc_quoted",
            "heredoc_run",
            "heredoc_run_command",
            "heredoc_run_shebang",
            "heredoc_same_name_twice",
            "heredoc_variable_name",
            "onbuild_heredoc",
            "whole_apt",
        ],
    ),
    ("JSON that is none, or empty", &["heredoc_not_in_json", "json_forms", "json_that_is_none"]),
];

fn name(folder: &std::path::Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn agrees_with_parse_dockerfile() {
    let mut wrong = Vec::new();
    for (folder, text) in cases("ok") {
        let name = name(&folder);
        let ours: Vec<String> = parse_text(&text).file.instructions.iter().map(ours).collect();
        let outcome = match parse_dockerfile::parse(&text) {
            Ok(file) => {
                let theirs: Vec<String> = file.instructions.iter().map(|i| theirs(i, &text)).collect();
                if theirs == ours { None } else { Some(difference(&ours, &theirs)) }
            }
            Err(error) => Some(error.to_string()),
        };
        let known = MODERN_DIFFERS.iter().any(|(known, _)| *known == name);
        match outcome {
            Some(how) if !known => wrong.push(format!("{name}: {how}")),
            None if known => wrong.push(format!("{name}: agrees by now")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn difference(ours: &[String], theirs: &[String]) -> String {
    let at = ours.iter().zip(theirs).position(|(a, b)| a != b).unwrap_or(ours.len().min(theirs.len()));
    format!("ours {:?}, theirs {:?}", ours.get(at), theirs.get(at))
}

/// Without continuations, comments and blanks: what is kept of them differs, what is said does not.
fn squeezed(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let joined: String =
        lines.map(|line| line.trim().trim_end_matches(['\\', '`'])).collect::<Vec<_>>().join(" ");
    joined.split_whitespace().collect::<Vec<_>>().join("")
}

fn command(command: &Command) -> String {
    match command {
        Command::Shell(text) => squeezed(&text.value),
        Command::Exec(array) => format!("{:?}", array.value),
    }
}

fn copy(name: &str, copy: &CopyInstr) -> String {
    let source = |source: &CopySource| match source {
        CopySource::Path(word) => word.value.clone(),
        CopySource::Heredoc(index) => format!("<<{:?}", copy.heredocs[*index].content),
    };
    let sources: Vec<String> = copy.sources.iter().map(source).collect();
    format!("{name} {} > {}", sources.join(" "), copy.dest.value)
}

fn ours(instruction: &Instruction) -> String {
    match &instruction.kind {
        Kind::From(from) => {
            format!("FROM {} {:?}", from.base.value, from.name.as_ref().map(|name| &name.value))
        }
        Kind::Run(run) => {
            let bodies: Vec<&str> = run.heredocs.iter().map(|heredoc| heredoc.content.as_str()).collect();
            // They keep the opener out of the command when it comes first.
            let command = match &run.command {
                Command::Shell(text) if !run.heredocs.is_empty() => {
                    let words = text.value.split_whitespace();
                    squeezed(&words.skip_while(|word| word.starts_with("<<")).collect::<String>())
                }
                other => command(other),
            };
            format!("RUN {command} {bodies:?}")
        }
        Kind::Copy(instruction) => copy("COPY", instruction),
        Kind::Add(instruction) => copy("ADD", instruction),
        Kind::Cmd(it) => format!("CMD {}", command(it)),
        Kind::Entrypoint(it) => format!("ENTRYPOINT {}", command(it)),
        Kind::Workdir(word) => format!("WORKDIR {}", squeezed(&word.value)),
        Kind::User(word) => format!("USER {}", squeezed(&word.value)),
        Kind::Onbuild(onbuild) => format!("ONBUILD {}", ours(&onbuild.trigger)),
        _ => instruction.keyword.value.to_uppercase(),
    }
}

fn their_command(command: &parse_dockerfile::Command<'_>) -> String {
    match command {
        parse_dockerfile::Command::Exec(array) => {
            format!("{:?}", array.value.iter().map(|s| s.value.as_ref()).collect::<Vec<_>>())
        }
        parse_dockerfile::Command::Shell(text) => squeezed(text.value),
        other => format!("{other:?}"),
    }
}

fn their_copy(
    name: &str,
    sources: &[parse_dockerfile::Source<'_>],
    dest: &parse_dockerfile::UnescapedString<'_>,
) -> String {
    let source = |source: &parse_dockerfile::Source<'_>| match source {
        parse_dockerfile::Source::Path(path) => path.value.clone().into_owned(),
        parse_dockerfile::Source::HereDoc(heredoc) => format!("<<{:?}", heredoc.value),
        other => format!("{other:?}"),
    };
    let sources: Vec<String> = sources.iter().map(source).collect();
    format!("{name} {} > {}", sources.join(" "), dest.value)
}

fn theirs(instruction: &Theirs<'_>, text: &str) -> String {
    match instruction {
        Theirs::From(it) => {
            format!("FROM {} {:?}", it.image.value, it.as_.as_ref().map(|(_, name)| &name.value))
        }
        Theirs::Run(it) => {
            let bodies: Vec<&str> = it.here_docs.iter().map(|heredoc| heredoc.value.as_ref()).collect();
            format!("RUN {} {bodies:?}", their_command(&it.arguments))
        }
        Theirs::Copy(it) => their_copy("COPY", &it.src, &it.dest),
        Theirs::Add(it) => their_copy("ADD", &it.src, &it.dest),
        Theirs::Cmd(it) => format!("CMD {}", their_command(&it.arguments)),
        Theirs::Entrypoint(it) => format!("ENTRYPOINT {}", their_command(&it.arguments)),
        Theirs::Workdir(it) => format!("WORKDIR {}", squeezed(&it.arguments.value)),
        Theirs::User(it) => format!("USER {}", squeezed(&it.arguments.value)),
        Theirs::Onbuild(it) => format!("ONBUILD {}", theirs(&it.instruction, text)),
        Theirs::Arg(it) => text[it.arg.span.clone()].to_uppercase(),
        Theirs::Env(it) => text[it.env.span.clone()].to_uppercase(),
        Theirs::Expose(it) => text[it.expose.span.clone()].to_uppercase(),
        Theirs::Healthcheck(it) => text[it.healthcheck.span.clone()].to_uppercase(),
        Theirs::Label(it) => text[it.label.span.clone()].to_uppercase(),
        Theirs::Maintainer(it) => text[it.maintainer.span.clone()].to_uppercase(),
        Theirs::Shell(it) => text[it.shell.span.clone()].to_uppercase(),
        Theirs::Stopsignal(it) => text[it.stopsignal.span.clone()].to_uppercase(),
        Theirs::Volume(it) => text[it.volume.span.clone()].to_uppercase(),
        other => format!("{other:?}"),
    }
}

#[test]
fn agrees_with_dockerfile_parser() {
    let mut wrong = Vec::new();
    for (folder, text) in cases("ok") {
        let name = name(&folder);
        let ours: Vec<String> = parse_text(&text).file.instructions.iter().map(ours_classic).collect();
        let outcome = match dockerfile_parser::Dockerfile::parse(&text) {
            Ok(file) => {
                let theirs: Vec<String> = file.instructions.iter().map(classic).collect();
                if theirs == ours { None } else { Some(difference(&ours, &theirs)) }
            }
            Err(error) => Some(error.to_string().lines().next().unwrap_or_default().to_owned()),
        };
        let known = CLASSIC_DIFFERS.iter().any(|(_, known)| known.contains(&name.as_str()));
        match outcome {
            Some(how) if !known => wrong.push(format!("{name}: {how}")),
            None if known => wrong.push(format!("{name}: agrees by now")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn ours_classic(instruction: &Instruction) -> String {
    match &instruction.kind {
        Kind::From(from) => {
            format!("FROM {} {:?}", from.base.value, from.name.as_ref().map(|name| &name.value))
        }
        Kind::Cmd(it) => format!("CMD {}", command(it)),
        Kind::Entrypoint(it) => format!("ENTRYPOINT {}", command(it)),
        Kind::Env(pairs) => {
            format!("ENV {:?}", pairs.pairs.iter().map(|pair| pair.key.value.as_str()).collect::<Vec<_>>())
        }
        _ => instruction.keyword.value.to_uppercase(),
    }
}

fn classic_command(expr: &dockerfile_parser::ShellOrExecExpr) -> String {
    match expr {
        dockerfile_parser::ShellOrExecExpr::Exec(array) => format!("{:?}", array.as_str_vec()),
        dockerfile_parser::ShellOrExecExpr::Shell(text) => squeezed(&text.to_string()),
    }
}

fn classic(instruction: &Classic) -> String {
    match instruction {
        Classic::From(it) => {
            format!("FROM {} {:?}", it.image.content, it.alias.as_ref().map(|name| &name.content))
        }
        Classic::Cmd(it) => format!("CMD {}", classic_command(&it.expr)),
        Classic::Entrypoint(it) => format!("ENTRYPOINT {}", classic_command(&it.expr)),
        Classic::Env(it) => {
            format!("ENV {:?}", it.vars.iter().map(|var| var.key.content.as_str()).collect::<Vec<_>>())
        }
        Classic::Arg(_) => "ARG".to_owned(),
        Classic::Label(_) => "LABEL".to_owned(),
        Classic::Run(_) => "RUN".to_owned(),
        Classic::Copy(_) => "COPY".to_owned(),
        Classic::Misc(it) => it.instruction.content.to_uppercase(),
    }
}
