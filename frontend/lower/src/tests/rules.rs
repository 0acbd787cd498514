//! What does not fit a golden case: the filter for findings of the parser, error codes.

use rbuild_diag::SourceFile;
use rbuild_dockerfile::parse;

use super::inputs;
use crate::dump::line;
use crate::{RULES, lint_stages, local_mistakes, merge_checks, plan_stages};

fn filtered(text: &str, inputs: &str) -> Result<Vec<String>, Vec<String>> {
    let source = SourceFile::new("Dockerfile", text);
    let parsed = parse(&source);
    let lines =
        |all: Vec<rbuild_diag::Diagnostic>| all.iter().map(|it| it.code.to_owned()).collect::<Vec<_>>();
    let options = inputs::options(inputs);
    merge_checks(&parsed.file, &source, &options, parsed.diagnostics, vec![]).map(lines).map_err(lines)
}

#[test]
fn findings_of_the_parser_are_filtered() {
    let text = "# this describes nothing\nFROM busybox as Base\nMAINTAINER me\n";
    let all = filtered(text, "").unwrap();
    assert_eq!(all, ["FromAsCasing", "StageNameCasing", "MaintainerDeprecated"]);
    assert!(filtered(text, "arg BUILDKIT_DOCKERFILE_CHECK=skip=all").unwrap().is_empty());
    let some = filtered(&format!("# check=skip=StageNameCasing,FromAsCasing\n{text}"), "").unwrap();
    assert_eq!(some, ["MaintainerDeprecated"]);
    let error = filtered(&format!("# check=error=true\n{text}"), "").unwrap_err();
    assert_eq!(error.last().map(String::as_str), Some("RB1130"));
    let text = "FROM busybox\n# check=skip=MaintainerDeprecated\nMAINTAINER me\n";
    assert!(filtered(text, "").unwrap().is_empty());
    let experimental = "arg BUILDKIT_DOCKERFILE_CHECK=experimental=all";
    let found = filtered("# no description\nFROM busybox AS a\n", experimental).unwrap();
    assert_eq!(found, ["InvalidDefinitionDescription"]);
}

#[test]
fn a_violation_names_the_rules_of_both_sides() {
    let text = "# check=error=true\nFROM scratch as a\nWORKDIR rel\n";
    let source = SourceFile::new("Dockerfile", text);
    let parsed = parse(&source);
    let options = inputs::options("");
    let lowered = crate::lower(&parsed.file, &source, &options, &crate::Facts::default()).unwrap_err();
    let all = merge_checks(&parsed.file, &source, &options, parsed.diagnostics, lowered).unwrap_err();
    let shown: Vec<String> = all.iter().map(line).collect();
    assert_eq!(shown.len(), 3, "{shown:#?}");
    assert!(shown[2].contains("build checks failed: FromAsCasing, WorkdirRelativePath"), "{shown:#?}");
}

#[test]
fn what_is_wrong_for_sure_is_found_in_broken_files() {
    let text = "FROM $NOPE AS Base\nRUN --mount=type=cash true\nCPOY a b\nCOPY --from=$x a b\nSTOPSIGNAL $S\nEXPOSE x\nENV A=${S B=${S:?no} C=${S^} D=\"\n";
    let source = SourceFile::new("Dockerfile", text.replace("$NOPE", "busybox"));
    let parsed = parse(&source);
    let found = local_mistakes(&parsed.file, &source, &inputs::options(""));
    let codes: Vec<&str> = found.iter().map(|it| it.code).collect();
    assert_eq!(codes, ["RB1113", "RB1111", "RB1124", "RB1107"], "{found:#?}");
    let source = SourceFile::new("Dockerfile", text);
    let found = lint_stages(&parse(&source).file, &source, &inputs::options(""));
    let codes: Vec<&str> = found.iter().map(|it| it.code).collect();
    assert_eq!(codes, ["InvalidDefaultArgInFrom", "UndefinedArgInFrom"], "{found:#?}");
}

#[test]
fn rules_have_unique_names() {
    let mut names: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 22);
    assert!(RULES.iter().all(|rule| !rule.description.is_empty()));
}

#[test]
fn stages_are_planned_without_images() {
    let text = "ARG V=3\n\
        # build compiles\nFROM --platform=$BUILDPLATFORM alpine:$V AS build\nRUN make\n\
        FROM busybox AS unused\nRUN false\n\
        FROM scratch\nCOPY --from=build /out /\nCOPY --from=0 /x /\n";
    let source = SourceFile::new("Dockerfile", text);
    let parsed = parse(&source);
    let plan = plan_stages(&parsed.file, &source, &inputs::options("arg V=4")).unwrap();
    let shown: Vec<String> = plan
        .stages
        .iter()
        .map(|it| format!("{} {} {:?} {} {:?}", it.name, it.base, it.uses, it.needed, it.description))
        .collect();
    assert_eq!(
        shown,
        [
            "build alpine:4 [] true \"compiles\"",
            "unused busybox [] false \"\"",
            "stage-2 scratch [0] true \"\""
        ]
    );
    assert_eq!(plan.target, 2);
    assert_eq!(plan.global_args, [("V".to_owned(), Some("4".to_owned()))]);
    let errors = plan_stages(&parsed.file, &source, &inputs::options("target biuld")).unwrap_err();
    assert_eq!(
        errors.iter().map(line).collect::<Vec<_>>(),
        ["error RB1103: there is no target stage \"biuld\" | help: did you mean \"build\"?"]
    );
}
