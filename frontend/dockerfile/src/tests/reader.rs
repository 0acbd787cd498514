//! Statements about single things that a golden file would hide.

use rbuild_diag::Severity;

use super::{cases, parse_text};
use crate::{
    Command, Dockerfile, HealthcheckInstr, Instruction, InstructionKind as Kind, Word, parse_instruction,
};

fn kinds(text: &str) -> Vec<Kind> {
    parse_text(text).file.instructions.into_iter().map(|instruction| instruction.kind).collect()
}

#[test]
fn triggers_are_parsed_alone() {
    let parsed = parse_instruction("RUN <<EOF\nx\nEOF", '\\');
    let Kind::Run(run) = &parsed.instruction.kind else { panic!("{parsed:?}") };
    assert_eq!(run.heredocs[0].content, "x\n");
    assert_eq!(parsed.instruction.original, "RUN <<EOF");
    assert!(parsed.diagnostics.is_empty());

    let parsed = parse_instruction("COPY --lnk a b", '\\');
    assert_eq!(parsed.diagnostics[0].severity, Severity::Error);
    assert_eq!(parsed.diagnostics[0].place, Some((parsed.source, rbuild_diag::Span::new(5, 10))));

    for (text, found) in [("", 0), ("# x", 0), ("RUN a\nRUN b", 2)] {
        let parsed = parse_instruction(text, '\\');
        assert_eq!(
            parsed.diagnostics[0].message,
            format!("expected one instruction, found {found}"),
            "{text}"
        );
    }
}

#[test]
fn an_onbuild_expression_parses_to_its_trigger() {
    let mut seen = 0;
    for (folder, text) in cases("ok") {
        let parsed = parse_text(&text);
        for instruction in &parsed.file.instructions {
            let Kind::Onbuild(onbuild) = &instruction.kind else { continue };
            let alone = parse_instruction(&onbuild.expression, parsed.file.directives.escape).instruction;
            assert_eq!(values(&alone), values(&onbuild.trigger), "{}", folder.display());
            seen += 1;
        }
    }
    assert!(seen > 5);
}

/// A dump without places.
fn values(instruction: &Instruction) -> String {
    let dump = crate::dump_instruction(instruction);
    let lines = dump.lines().filter(|line| !line.contains("original"));
    lines.map(|line| line.rsplit_once(" @").map_or(line, |(value, _)| value)).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_sole_heredoc_is_the_script() {
    for (line, sole) in [
        ("RUN <<EOF", true),
        ("RUN --network=none <<-EOF", true),
        ("RUN 3<<'EOF'", true),
        ("RUN << EOF", true),
        ("RUN <<EOF cat", false),
        ("RUN cat <<EOF", false),
        ("RUN <<EOF <<A", false),
    ] {
        let Some(Kind::Run(run)) = kinds(&format!("{line}\nx\nEOF\nA\n")).into_iter().next() else {
            panic!("{line}")
        };
        assert_eq!(run.sole_heredoc().is_some(), sole, "{line}");
    }
}

#[test]
fn what_can_be_kept_of_a_broken_instruction_is_kept() {
    let kinds = kinds("FROM a b c d\nCOPY --bogus a b\nENV A=1 B\nHEALTHCHECK NONE x\nCOPY a\nCMD [1]\n");
    assert!(matches!(&kinds[0], Kind::From(from) if from.base.value == "a" && from.name.is_none()));
    assert!(matches!(&kinds[1], Kind::Copy(copy) if copy.dest.value == "b"));
    assert!(matches!(&kinds[2], Kind::Env(env) if env.pairs.len() == 1));
    assert!(matches!(&kinds[3], Kind::Healthcheck(HealthcheckInstr::None)));
    assert!(matches!(&kinds[4..], [Kind::Invalid, Kind::Invalid]));
}

#[test]
fn diagnostics_are_in_the_order_of_the_text() {
    for (folder, text) in cases("err") {
        let starts: Vec<_> =
            parse_text(&text).diagnostics.iter().map(|d| d.place.as_ref().unwrap().1.start).collect();
        assert!(starts.is_sorted(), "{}", folder.display());
    }
}

#[test]
fn every_word_points_at_itself() {
    let mut seen = 0;
    for (folder, text) in cases("ok") {
        // Where continuations, flags' quotes or JSON come in, a word is not a piece of the source.
        for_each_word(&parse_text(&text).file, &mut |word| {
            let Some(source) = text.get(word.span.range()) else { panic!("{}: {word:?}", folder.display()) };
            let glued = |c: char| matches!(c, '\\' | '`' | '\n' | '"' | '\'' | '[' | '#');
            assert!(
                source == word.value || source.contains(glued),
                "{}: {word:?} is {source:?}",
                folder.display()
            );
            seen += usize::from(source == word.value);
        });
    }
    assert!(seen > 200, "{seen}");
}

fn for_each_word(file: &Dockerfile, check: &mut dyn FnMut(&Word)) {
    for instruction in &file.instructions {
        check(&instruction.keyword);
        for_each_word_of(&instruction.kind, check);
    }
}

fn for_each_word_of(kind: &Kind, check: &mut dyn FnMut(&Word)) {
    match kind {
        Kind::From(from) => {
            check(&from.base);
            [&from.platform, &from.as_keyword, &from.name].into_iter().flatten().for_each(check);
        }
        Kind::Run(run) => {
            for field in run.mounts.iter().flat_map(|mount| &mount.fields) {
                check(&field.key);
                field.value.iter().for_each(&mut *check);
            }
            if let Command::Shell(text) = &run.command {
                check(text);
            }
        }
        Kind::Copy(copy) | Kind::Add(copy) => {
            check(&copy.dest);
            [&copy.from, &copy.chown, &copy.chmod, &copy.checksum].into_iter().flatten().for_each(check);
        }
        Kind::Env(pairs) | Kind::Label(pairs) => pairs.pairs.iter().for_each(|pair| {
            check(&pair.key);
            check(&pair.value);
        }),
        Kind::Arg(declarations) => declarations.iter().for_each(|declaration| check(&declaration.name)),
        Kind::Workdir(word) | Kind::User(word) | Kind::StopSignal(word) | Kind::Maintainer(word) => {
            check(word)
        }
        Kind::Expose(words) | Kind::Volume(words) => words.iter().for_each(check),
        Kind::Onbuild(onbuild) => for_each_word_of(&onbuild.trigger.kind, check),
        Kind::Cmd(Command::Shell(text)) | Kind::Entrypoint(Command::Shell(text)) => check(text),
        Kind::Cmd(_) | Kind::Entrypoint(_) | Kind::Shell(_) | Kind::Healthcheck(_) | Kind::Invalid => {}
    }
}
