//! Which rules fire, and on which line: a table of small files. Line numbers are those of the instruction.

use rbuild_diag::SourceFile;
use rbuild_dockerfile::parse;

use super::inputs;
use crate::{Facts, Outcome, lower, merge_checks};

/// `Rule@line` of everything found, in the order of the file.
fn found(text: &str, options: &str) -> String {
    let source = SourceFile::new("Dockerfile", text);
    let parsed = parse(&source);
    let options = inputs::options(options);
    let mut facts = Facts::default();
    let mut lowered = Vec::new();
    for _ in 0..10 {
        match lower(&parsed.file, &source, &options, &facts) {
            Ok(Outcome::Need(needs)) if inputs::answer(&needs, &mut facts) => continue,
            Ok(Outcome::Need(_)) => {}
            Ok(Outcome::Done(done)) => lowered = done.warnings,
            Err(errors) => lowered = errors,
        }
        break;
    }
    let instructions: Vec<_> = parsed.file.instructions.iter().map(|it| it.span).collect();
    let merged = merge_checks(&parsed.file, &source, &options, parsed.diagnostics, lowered);
    let mut all = merged.unwrap_or_else(|all| all);
    crate::sort_by_place(&source, &mut all);
    let place = |it: &rbuild_diag::Diagnostic| {
        let start = it.place.as_ref().map_or(0, |(_, span)| span.start);
        let around = instructions.iter().find(|span| span.start <= start && start <= span.end);
        source.line_col(around.map_or(start, |span| span.start)).line
    };
    all.iter().map(|it| format!("{}@{}", it.code, place(it))).collect::<Vec<_>>().join(" ")
}

#[test]
fn rules_fire_where_they_should_and_only_there() {
    for (text, want) in [
        (
            "FROM scratch AS BadStageName\nFROM scratch as base2\nFROM scratch AS base3\n",
            "StageNameCasing@1 FromAsCasing@2",
        ),
        ("from scratch AS base\nfrom scratch as base2\n", "FromAsCasing@1"),
        ("From scratch as base\nFROM scratch AS base2\n", "ConsistentInstructionCasing@1"),
        ("FROM scratch\nCOPY a \\\n\n.\nCOPY a \\\n.\n", "NoEmptyContinuation@2"),
        ("FROM scratch\nCOPY a \\\n# no\n.\n", ""),
        ("FROM scratch\ncopy a /foo\nCOPY a /bar\n", "ConsistentInstructionCasing@2"),
        ("from scratch\nCOPY a /foo\ncopy a /bar\n", "ConsistentInstructionCasing@2"),
        ("from scratch\nCOPY a /foo\nCOPY a /bar\n", "ConsistentInstructionCasing@1"),
        ("FROM scratch\ncopy a /foo\ncopy a /bar\n", "ConsistentInstructionCasing@1"),
        ("from scratch\nCOPY a /foo\n", "ConsistentInstructionCasing@1"),
        ("arg A=1\nFROM scratch\nCOPY a /foo\n", ""),
        ("FROM busybox\nRUN <<'EOT'\nenv\nEOT\n", ""),
        ("FROM scratch AS b\nFROM scratch AS b\n", "DuplicateStageName@2"),
        ("FROM scratch AS b\nFROM scratch AS B\n", "StageNameCasing@2 DuplicateStageName@2"),
        ("FROM scratch AS scratch\nFROM scratch AS context\n", "ReservedStageName@1 ReservedStageName@2"),
        ("FROM scratch\nFROM scratch AS a\n", ""),
        ("FROM scratch\nCMD mycommand\n", "JSONArgsRecommended@2"),
        ("FROM scratch\nENTRYPOINT mycommand\n", "JSONArgsRecommended@2"),
        ("FROM scratch\nSHELL [\"/usr/bin/customshell\"]\nCMD mycommand\nENTRYPOINT x\n", ""),
        ("FROM scratch AS base\nSHELL [\"/usr/bin/customshell\"]\nFROM base\nCMD mycommand\n", ""),
        ("FROM scratch\nCMD [\"a\"]\nHEALTHCHECK CMD a\nRUN a\n", ""),
        ("FROM scratch\nMAINTAINER me@example.org\n", "MaintainerDeprecated@2"),
        ("FROM scratch\nLABEL org.opencontainers.image.authors=\"me@example.org\"\n", ""),
        ("ARG base=scratch\nFROM $base\n", ""),
        ("ARG BUILDPLATFORM=linux/amd64\nFROM --platform=$BUILDPLATFORM scratch\n", ""),
        ("FROM --platform=$BUILDPLATFORM scratch\n", ""),
        ("ARG tag=latest\nFROM busybox:${tag}${version} AS b\n", "UndefinedArgInFrom@2"),
        ("FROM busybox:${version:-1}\n", "UndefinedArgInFrom@1"),
        ("ARG version\nFROM busybox:${version:-1}\n", ""),
        ("FROM scratch\nWORKDIR app/\n", "WorkdirRelativePath@2"),
        ("FROM scratch\nWORKDIR a\nWORKDIR b\n", "WorkdirRelativePath@2"),
        ("FROM scratch AS a\nWORKDIR /app\nFROM a AS b\nWORKDIR subdir/\n", ""),
        ("FROM scratch AS a\nWORKDIR /app\nFROM scratch AS b\nWORKDIR subdir/\n", "WorkdirRelativePath@4"),
        ("FROM scratch\nARG foo\nCOPY Dockerfile${foo} .\n", ""),
        ("FROM busybox AS base\nARG foo=Dockerfile\nFROM base\nCOPY $foo .\n", ""),
        ("FROM busybox\nRUN echo $PATH $nope\n", ""),
        ("FROM busybox\nCOPY $foo .\nARG foo=bar\nRUN echo $foo\n", "UndefinedVar@2"),
        ("FROM busybox\nCOPY \\\n  a \\\n  $foo\n", "UndefinedVar@2"),
        ("FROM busybox\nENV PATH=$PAHT:/tmp/bin\n", "UndefinedVar@2"),
        ("ARG foo=1\nFROM busybox\nENV A=$foo\n", "UndefinedVar@3"),
        ("FROM busybox\nEXPOSE $PORT\nCMD [\"$X\"]\nSHELL [\"$Y\"]\nHEALTHCHECK CMD $Z\n", ""),
        ("FROM busybox\nENV A=${B:-1} C=${D:+x}\n", "UndefinedVar@2 UndefinedVar@2"),
        ("FROM busybox\nCOPY <<E /\n$a\nE\nCOPY <<'E' /\n$b\nE\nRUN <<E\n$c\nE\n", "UndefinedVar@2"),
        (
            "FROM scratch\nENTRYPOINT [\"/a\"]\nENTRYPOINT [\"/b\"]\nCMD [\"/a\"]\nCMD [\"/b\"]\nHEALTHCHECK CMD [\"/a\"]\nHEALTHCHECK NONE\n",
            "MultipleInstructionsDisallowed@2 MultipleInstructionsDisallowed@4 MultipleInstructionsDisallowed@6",
        ),
        (
            "FROM scratch AS a\nENTRYPOINT [\"/a\"]\nCMD [\"/a\"]\nFROM a AS b\nENTRYPOINT [\"/b\"]\nCMD [\"/b\"]\n",
            "",
        ),
        (
            "FROM scratch\nENV testkey value\nLABEL key value\n",
            "LegacyKeyValueFormat@2 LegacyKeyValueFormat@3",
        ),
        ("FROM scratch AS a\nFROM a AS b\nENV testkey value\nFROM a AS c\n", ""),
        ("FROM --platform=$TARGETPLATFORM scratch\n", "RedundantTargetPlatform@1"),
        ("FROM --platform=${TARGETPLATFORM} scratch\n", "RedundantTargetPlatform@1"),
        ("FROM --platform=$TARGETOS/$TARGETARCH scratch\n", ""),
        (
            "FROM scratch\nARG SECRET_PASSPHRASE\nENV SUPER_Secret=foo\nENV password=bar secret=baz\nARG super_duper_secret_token=foo auth=bar\nENV git_key= sunflower=1 public_key=1 token_file=x key_version=2 MONKEY=1 author=2\n",
            "SecretsUsedInArgOrEnv@2 SecretsUsedInArgOrEnv@3 SecretsUsedInArgOrEnv@4 SecretsUsedInArgOrEnv@4 SecretsUsedInArgOrEnv@5 SecretsUsedInArgOrEnv@5 SecretsUsedInArgOrEnv@6",
        ),
        ("ARG TOKEN\nFROM scratch\nLABEL password=1\n", ""),
        ("ARG VERSION=\"latest\"\nFROM busybox:${VERSION}\n", ""),
        ("ARG V=\"\"\nFROM busybox:stable${V}\n", ""),
        ("ARG V\nFROM busybox:stable${V}\n", ""),
        ("FROM --platform=linux/amd64 scratch\n", "FromPlatformFlagConstDisallowed@1"),
        ("FROM --platform=linux/amd64 scratch AS my_amd64_stage\n", ""),
        ("FROM --platform=linux/amd64 scratch AS linux\n", ""),
        (
            "FROM scratch\nEXPOSE 80/TCP 53/udp\nEXPOSE 8080:80\nEXPOSE 127.0.0.1:80:80\n",
            "ExposeProtoCasing@2 ExposeInvalidFormat@3 ExposeInvalidFormat@4",
        ),
        ("# base is it\nFROM scratch AS base\n# what\nARG foo=1\n", ""),
    ] {
        assert_eq!(found(text, ""), want, "{text}");
    }
}

#[test]
fn rules_that_depend_on_the_request() {
    let experimental = "arg BUILDKIT_DOCKERFILE_CHECK=experimental=all";
    for (text, options, want) in [
        ("ARG VERSION\nFROM busybox:$VERSION\n", "arg VERSION=latest", "InvalidDefaultArgInFrom@2"),
        ("ARG IMAGE\nFROM $IMAGE\n", "arg IMAGE=busybox:latest", "InvalidDefaultArgInFrom@2"),
        ("ARG SFX=\"box:\"\nFROM busy${SFX}\n", "arg SFX=box:latest", "InvalidDefaultArgInFrom@2"),
        (
            "FROM scratch\nCOPY Dockerfile .\nADD Dockerfile /windy\n",
            "ignore Dockerfile",
            "CopyIgnoredFile@2 CopyIgnoredFile@3",
        ),
        ("FROM scratch\nCOPY a .\n", "ignore Dockerfile", ""),
        (
            "FROM scratch AS base\nCOPY a /foobar\nFROM base\nCOPY --from=base /foobar /b\n",
            "ignore foobar",
            "",
        ),
        ("FROM scratch\nCOPY a .\n", "ignore *|!b", ""),
        (
            "# base is it\nFROM scratch AS base\n# what\nARG foo=1\n",
            experimental,
            "InvalidDefinitionDescription@3",
        ),
        (
            "# what\n\nFROM scratch AS base\n# foo is it\nARG foo=1\n#\nARG bar\n",
            experimental,
            "InvalidDefinitionDescription@1",
        ),
        ("FROM scratch as a\nCMD x\n", "arg BUILDKIT_DOCKERFILE_CHECK=skip=all", ""),
        ("#check=skip=all;error=true\nFROM scratch as base\ncopy a .\n", "", ""),
        ("#check=error=true\nFROM scratch as base\ncopy a .\n", "arg BUILDKIT_DOCKERFILE_CHECK=skip=all", ""),
    ] {
        assert_eq!(found(text, options), want, "{text} {options}");
    }
}
