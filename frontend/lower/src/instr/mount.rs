//! The fields of `RUN --mount=…`: which there are, what they may hold, and for which type.

use rbuild_diag::{Span, Spanned, nearest};
use rbuild_dockerfile::{CsvField, CsvFlag};
use rbuild_graph::CacheSharing;

use crate::codes;
use crate::ctx::{At, Ctx};
use crate::fault::Fault;
use crate::gotext;
use crate::stage::Run;

/// A mount as written, values expanded and checked.
#[derive(Clone, Debug)]
pub(crate) struct MountSpec {
    pub(crate) kind: Kind,
    pub(crate) span: Span,
    /// Not expanded; `None` when absent or empty.
    pub(crate) from: Option<Spanned<String>>,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) id: String,
    pub(crate) readonly: bool,
    pub(crate) required: bool,
    pub(crate) sharing: CacheSharing,
    pub(crate) size: i64,
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// The variable that a secret becomes.
    pub(crate) env: Option<String>,
}

/// Types of mounts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

const TYPES: [(&str, Kind); 5] = [
    ("bind", Kind::Bind),
    ("cache", Kind::Cache),
    ("tmpfs", Kind::Tmpfs),
    ("secret", Kind::Secret),
    ("ssh", Kind::Ssh),
];

const KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
];

impl Kind {
    fn name(self) -> &'static str {
        TYPES.iter().find(|(_, kind)| *kind == self).map_or("bind", |(name, _)| name)
    }

    /// Whether the type takes the field.
    fn takes(self, key: &str) -> bool {
        match key {
            "mode" | "uid" | "gid" => matches!(self, Self::Cache | Self::Secret | Self::Ssh),
            "size" => self == Self::Tmpfs,
            "sharing" => self == Self::Cache,
            "required" => matches!(self, Self::Secret | Self::Ssh),
            "from" => self != Self::Secret,
            "source" | "src" => self != Self::Ssh,
            _ => true,
        }
    }
}

/// Reads a flag. Mistakes beyond the first are put into the errors.
pub(crate) fn parse(
    ctx: &mut Ctx<'_>,
    run: &Run<'_>,
    at: At<'_>,
    flag: &CsvFlag,
) -> Result<MountSpec, Fault> {
    let kind = parse_kind(ctx, run, at, flag)?;
    let mut out = MountSpec {
        kind,
        span: flag.span,
        from: None,
        source: String::new(),
        target: String::new(),
        id: String::new(),
        readonly: !matches!(kind, Kind::Cache | Kind::Tmpfs),
        required: false,
        sharing: CacheSharing::Shared,
        size: 0,
        mode: None,
        uid: None,
        gid: None,
        env: None,
    };
    let mut first = None;
    for field in &flag.fields {
        if let Err(error) = apply(ctx, run, at, field, &mut out) {
            match &first {
                None => first = Some(error),
                Some(_) => ctx.fail(error),
            }
        }
    }
    if let Some(error) = first {
        return Err(error);
    }
    check(at, &out)?;
    Ok(out)
}

fn parse_kind(ctx: &mut Ctx<'_>, run: &Run<'_>, at: At<'_>, flag: &CsvFlag) -> Result<Kind, Fault> {
    let mut kind = Kind::Bind;
    for field in flag.fields.iter().filter(|field| field.key.value.eq_ignore_ascii_case("type")) {
        let Some(word) = &field.value else { continue };
        let value = run.expand(ctx, at, word)?;
        let lower = value.to_lowercase();
        kind = match TYPES.iter().find(|(name, _)| *name == lower) {
            Some((_, kind)) => *kind,
            None => {
                let error = at.error(codes::MOUNT, word.span, format!("there is no mount type {value:?}"));
                return Err(suggest(error, &value, TYPES.iter().map(|(name, _)| *name)));
            }
        };
    }
    Ok(kind)
}

fn suggest<'a>(error: Fault, word: &str, candidates: impl Iterator<Item = &'a str> + Clone) -> Fault {
    match nearest(word, candidates.clone()) {
        Some(near) => error.help(format!("did you mean {near}?")),
        None => error.help(format!("it must be one of {}", candidates.collect::<Vec<_>>().join(", "))),
    }
}

fn apply(
    ctx: &mut Ctx<'_>,
    run: &Run<'_>,
    at: At<'_>,
    field: &CsvField,
    out: &mut MountSpec,
) -> Result<(), Fault> {
    let key = field.key.value.to_lowercase();
    if key.is_empty() {
        let error = at.error(codes::MOUNT, field.key.span, "a field of the mount is empty");
        return Err(error.help("write one comma between fields, and none at the ends"));
    }
    if !KEYS.contains(&key.as_str()) {
        let error = at.error(codes::MOUNT, field.key.span, format!("a mount has no field {key:?}"));
        return Err(suggest(error, &key, KEYS.iter().copied()));
    }
    if !out.kind.takes(&key) {
        return Err(at.error(
            codes::MOUNT,
            field.key.span,
            format!("a mount of type {} does not take {key:?}", out.kind.name()),
        ));
    }
    let Some(word) = &field.value else {
        match key.as_str() {
            "readonly" | "ro" => out.readonly = true,
            "readwrite" | "rw" => out.readonly = false,
            "required" => out.required = true,
            _ => {
                return Err(at
                    .error(
                        codes::MOUNT,
                        field.key.span,
                        format!("the field {key:?} of a mount needs a value"),
                    )
                    .help(format!("write {key}=…")));
            }
        }
        return Ok(());
    };
    if key == "from" {
        out.from = Some(word.clone()).filter(|from| !from.value.is_empty());
        return Ok(());
    }
    let value = run.expand(ctx, at, word)?;
    let invalid = |what: &str| {
        at.error(codes::MOUNT, word.span, format!("invalid value {value:?} of {key}: it must be {what}"))
    };
    let boolean = || gotext::parse_bool(&value).ok_or_else(|| invalid("true or false"));
    let number = |radix, what| u32::from_str_radix(&value, radix).map_err(|_| invalid(what));
    match key.as_str() {
        "readonly" | "ro" => out.readonly = boolean()?,
        "readwrite" | "rw" => out.readonly = !boolean()?,
        "required" => out.required = boolean()?,
        "source" | "src" => out.source = value,
        "target" | "dst" | "destination" => out.target = value,
        "id" => out.id = value,
        "env" => out.env = Some(value),
        "size" => {
            out.size = gotext::parse_size(&value).ok_or_else(|| invalid("a size such as 64m or 1g"))?;
        }
        "mode" => out.mode = Some(number(8, "permission bits in octal, such as 0755")?),
        "uid" => out.uid = Some(number(10, "a number")?),
        "gid" => out.gid = Some(number(10, "a number")?),
        "sharing" => {
            out.sharing = match value.to_lowercase().as_str() {
                "shared" => CacheSharing::Shared,
                "private" => CacheSharing::Private,
                "locked" => CacheSharing::Locked,
                _ => {
                    let error =
                        at.error(codes::MOUNT, word.span, format!("there is no cache sharing {value:?}"));
                    return Err(suggest(error, &value, ["shared", "private", "locked"].into_iter()));
                }
            };
        }
        _ => {}
    }
    Ok(())
}

/// What no single field shows.
fn check(at: At<'_>, mount: &MountSpec) -> Result<(), Fault> {
    if mount.kind != Kind::Secret {
        return Ok(());
    }
    if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
        return Err(at
            .error(codes::MOUNT, mount.span, "a secret mount must say which secret")
            .help("write id=NAME, the name given to --secret"));
    }
    if !mount.source.is_empty() && !mount.id.is_empty() {
        return Err(at
            .error(codes::MOUNT, mount.span, "a secret mount has both id and source, which mean the same")
            .help("keep id"));
    }
    Ok(())
}
