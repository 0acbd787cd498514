//! The syntax tree as text, stable, for golden tests: a line a token, with the bytes of the source that it was
//! made from.

use std::fmt::Write;

use rbuild_diag::{Span, Spanned};

use crate::{
    ArgDecl, Command, CopyInstr, CopySource, CsvField, CsvFlag, Dockerfile, FromInstr, HealthcheckInstr,
    Heredoc, Instruction, InstructionKind, KeyValues, OnbuildInstr, RunInstr, Word,
};

/// A whole file.
#[must_use]
pub fn dump(file: &Dockerfile) -> String {
    let mut out = Out { text: String::new(), depth: 0 };
    let directives = &file.directives;
    if let Some(syntax) = &directives.syntax {
        out.word("syntax", syntax);
    }
    if directives.escape != '\\' {
        out.line(format_args!("escape {:?}", directives.escape));
    }
    if let Some(check) = &directives.check {
        out.word("check", check);
    }
    for instruction in &file.instructions {
        out.instruction(instruction);
    }
    out.text
}

/// One instruction.
#[must_use]
pub fn dump_instruction(instruction: &Instruction) -> String {
    let mut out = Out { text: String::new(), depth: 0 };
    out.instruction(instruction);
    out.text
}

struct Out {
    text: String,
    depth: usize,
}

impl Out {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        let indent = self.depth * 2;
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "{:indent$}{line}", "");
    }

    fn word(&mut self, name: &str, word: &Word) {
        self.line(format_args!("{name} {:?} {}", word.value, place(word.span)));
    }

    fn optional(&mut self, name: &str, word: Option<&Word>) {
        if let Some(word) = word {
            self.word(name, word);
        }
    }

    fn boolean(&mut self, name: &str, flag: Option<&Spanned<bool>>) {
        if let Some(flag) = flag {
            self.line(format_args!("{name} {} {}", flag.value, place(flag.span)));
        }
    }

    fn instruction(&mut self, instruction: &Instruction) {
        self.line(format_args!("{} {}", instruction.keyword.value, place(instruction.span)));
        self.depth += 1;
        self.line(format_args!("original {:?}", instruction.original));
        for comment in &instruction.comments {
            self.word("comment", comment);
        }
        self.kind(&instruction.kind);
        self.depth -= 1;
    }

    fn kind(&mut self, kind: &InstructionKind) {
        use InstructionKind as Kind;
        match kind {
            Kind::From(from) => self.from(from),
            Kind::Run(run) => self.run(run),
            Kind::Copy(copy) | Kind::Add(copy) => self.copy(copy),
            Kind::Env(pairs) | Kind::Label(pairs) => self.key_values(pairs),
            Kind::Arg(declarations) => self.arg(declarations),
            Kind::Workdir(word) | Kind::User(word) | Kind::StopSignal(word) | Kind::Maintainer(word) => {
                self.word("value", word);
            }
            Kind::Expose(words) | Kind::Volume(words) => {
                words.iter().for_each(|word| self.word("word", word))
            }
            Kind::Cmd(command) | Kind::Entrypoint(command) => self.command(command),
            Kind::Shell(array) => self.array(array),
            Kind::Healthcheck(healthcheck) => self.healthcheck(healthcheck),
            Kind::Onbuild(onbuild) => self.onbuild(onbuild),
            Kind::Invalid => self.line(format_args!("invalid")),
        }
    }

    fn from(&mut self, from: &FromInstr) {
        self.optional("--platform", from.platform.as_ref());
        self.word("base", &from.base);
        self.optional("as", from.as_keyword.as_ref());
        self.optional("name", from.name.as_ref());
    }

    fn run(&mut self, run: &RunInstr) {
        for mount in &run.mounts {
            self.fields("--mount", mount);
        }
        self.optional("--network", run.network.as_ref());
        self.optional("--security", run.security.as_ref());
        for device in &run.devices {
            self.fields("--device", device);
        }
        self.command(&run.command);
        self.heredocs(&run.heredocs);
    }

    fn fields(&mut self, name: &str, flag: &CsvFlag) {
        self.line(format_args!("{name} {}", place(flag.span)));
        self.depth += 1;
        for CsvField { key, value } in &flag.fields {
            self.word("key", key);
            self.optional("value", value.as_ref());
        }
        self.depth -= 1;
    }

    fn copy(&mut self, copy: &CopyInstr) {
        self.optional("--from", copy.from.as_ref());
        self.optional("--chown", copy.chown.as_ref());
        self.optional("--chmod", copy.chmod.as_ref());
        self.boolean("--link", copy.link.as_ref());
        self.boolean("--parents", copy.parents.as_ref());
        for exclude in &copy.exclude {
            self.word("--exclude", exclude);
        }
        self.optional("--checksum", copy.checksum.as_ref());
        self.boolean("--keep-git-dir", copy.keep_git_dir.as_ref());
        self.boolean("--unpack", copy.unpack.as_ref());
        for source in &copy.sources {
            match source {
                CopySource::Path(word) => self.word("source", word),
                CopySource::Heredoc(index) => self.line(format_args!("source heredoc {index}")),
            }
        }
        self.word("dest", &copy.dest);
        self.heredocs(&copy.heredocs);
    }

    fn heredocs(&mut self, heredocs: &[Heredoc]) {
        for heredoc in heredocs {
            let Heredoc { name, chomp, expand, fd, content, raw, span } = heredoc;
            let expand = if *expand { "expand" } else { "raw" };
            self.line(format_args!("heredoc {name:?} fd {fd} {expand} {content:?} {}", place(*span)));
            if *chomp {
                self.line(format_args!("  chomped from {raw:?}"));
            }
        }
    }

    fn key_values(&mut self, pairs: &KeyValues) {
        if pairs.legacy {
            self.line(format_args!("legacy"));
        }
        for pair in &pairs.pairs {
            self.word("key", &pair.key);
            self.word("value", &pair.value);
        }
    }

    fn arg(&mut self, declarations: &[ArgDecl]) {
        for declaration in declarations {
            self.word("name", &declaration.name);
            self.optional("default", declaration.default.as_ref());
        }
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Shell(text) => self.word("shell", text),
            Command::Exec(array) => self.array(array),
        }
    }

    fn array(&mut self, array: &Spanned<Vec<String>>) {
        self.line(format_args!("exec {:?} {}", array.value, place(array.span)));
    }

    fn healthcheck(&mut self, healthcheck: &HealthcheckInstr) {
        match healthcheck {
            HealthcheckInstr::None => self.line(format_args!("none")),
            HealthcheckInstr::Cmd { interval, timeout, start_period, start_interval, retries, command } => {
                self.optional("--interval", interval.as_ref());
                self.optional("--timeout", timeout.as_ref());
                self.optional("--start-period", start_period.as_ref());
                self.optional("--start-interval", start_interval.as_ref());
                self.optional("--retries", retries.as_ref());
                self.command(command);
            }
        }
    }

    fn onbuild(&mut self, onbuild: &OnbuildInstr) {
        self.line(format_args!("expression {:?}", onbuild.expression));
        self.instruction(&onbuild.trigger);
    }
}

fn place(span: Span) -> String {
    format!("@{}..{}", span.start, span.end)
}
