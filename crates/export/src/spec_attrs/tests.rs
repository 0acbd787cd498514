//! Outputs as people write them, as one line each.

use super::*;
use crate::OutputSpec;

fn show(text: &str) -> String {
    match text.parse::<OutputSpec>() {
        Err(error) => format!("error: {error}"),
        Ok(spec) => {
            let image = |o: &ImageOptions| {
                let mut out: Vec<String> = o.names.iter().map(ToString::to_string).collect();
                if let Some(c) = o.compression {
                    out.push(format!("{:?}/{:?}/{}", c.kind, c.level, c.force));
                }
                if !o.oci_media_types {
                    out.push("docker-types".to_owned());
                }
                out.extend(o.annotations.iter().map(|a| format!("{:?}:{}={}", a.target, a.key, a.value)));
                out.extend(o.source_date_epoch.map(|e| format!("@{e}")));
                out.extend(o.rewrite_timestamp.then(|| "rewrite".to_owned()));
                out.join(" ")
            };
            let kind = spec.kind();
            let rest = match &spec {
                OutputSpec::Local(o) => format!(
                    "{} {:?} {:?} {:?}",
                    o.dest.display(),
                    o.mode,
                    o.platform_split,
                    o.source_date_epoch
                ),
                OutputSpec::Tar(o) => format!("{} {:?}", o.dest, o.platform_split),
                OutputSpec::Oci(o) | OutputSpec::Docker(o) => {
                    format!("{} tar={} {}", o.dest, o.tar, image(&o.image))
                }
                OutputSpec::Load(o) => image(&o.image),
                OutputSpec::Image(o) => format!("store={} push={} {}", o.store, o.push, image(&o.image)),
                OutputSpec::CacheOnly => String::new(),
            };
            format!("{kind} {rest}").trim_end().to_owned()
        }
    }
}

#[test]
fn outputs() {
    for (text, want) in [
        ("out", "local out Copy None None"),
        ("./a b", "local ./a b Copy None None"),
        ("-", "tar - None"),
        (
            "type=local,dest=out,mode=delete,platform-split=false,source-date-epoch=7",
            "local out Delete Some(false) Some(7)",
        ),
        ("type=tar", "tar - None"),
        ("TYPE=tar, DEST=x.tar", "tar x.tar None"),
        ("type=oci", "oci - tar=true"),
        ("type=oci,dest=d,tar=false", "oci d tar=false"),
        ("type=oci,rewrite-timestamp=true,source-date-epoch=7", "oci - tar=true @7 rewrite"),
        (
            "type=registry,name=app,rewrite-timestamp=true",
            "registry store=true push=true docker.io/library/app:latest rewrite",
        ),
        ("type=docker", "load"),
        ("type=docker,dest=-", "docker - tar=true"),
        ("type=docker,name=app", "load docker.io/library/app:latest"),
        ("type=image,name=app", "image store=true push=false docker.io/library/app:latest"),
        (
            r#"type=image,"name=a:1,b.io/c",push=true"#,
            "registry store=true push=true docker.io/library/a:1 b.io/c:latest",
        ),
        ("type=registry,store=0", "registry store=false push=true"),
        ("type=registry,push=false", "image store=true push=false"),
        (
            "type=oci,dest=x,compression=zstd,compression-level=22,force-compression=true",
            "oci x tar=true Zstd/Some(22)/true",
        ),
        ("type=image,compression=zstd,oci-mediatypes=false", "image store=true push=false Zstd/None/false"),
        ("type=image,oci-mediatypes=false,unpack=true", "image store=true push=false docker-types"),
        ("type=image,compression-level=9", "image store=true push=false Gzip/Some(9)/false"),
        (
            "type=oci,dest=x,annotation.Org.X=y=z,annotation-index[linux/amd64].k=v",
            "oci x tar=true Manifest:Org.X=y=z Index:k=v",
        ),
        ("type=cacheonly", "cacheonly"),
    ] {
        assert_eq!(show(text), want, "{text}");
    }
}

#[test]
fn what_is_no_output() {
    for (text, want) in [
        ("", "it is empty"),
        ("dest=x,tar=true", "type= is required"),
        ("a,b", "\"a\" is not of the form key=value"),
        ("type=tra", "unknown output type \"tra\" (did you mean \"tar\"?)"),
        ("type=local", "output type=local needs dest"),
        ("type=local,dest=-", "files cannot go to standard output"),
        ("type=local,dest=x,name=y", "unknown attribute \"name\" of output type=local"),
        ("type=oci,dset=x", "unknown attribute \"dset\" of output type=oci (did you mean \"dest\"?)"),
        ("type=oci,tar=false", "output type=oci needs dest"),
        ("type=oci,tar=maybe", "invalid tar=\"maybe\" of output type=oci: expected true or false"),
        ("type=oci,oci-mediatypes=false", "always has OCI media types"),
        ("type=oci,compression=lz4", "expected gzip, zstd or uncompressed"),
        ("type=oci,compression=estargz", "compression=estargz of output type=oci is not supported yet"),
        ("type=oci,compression-level=10", "gzip has levels 0 to 9"),
        ("type=oci,compression=uncompressed,compression-level=1", "plain tars have no level"),
        ("type=image,name=App", "must be lower-case"),
        ("type=image,dest=x", "type=oci writes a file"),
        (
            "type=image,rewrite-timestamp=true",
            "rewrite-timestamp=true of output type=image is not supported yet: only layers that leave",
        ),
        ("type=registry,name=app,unpack=true,rewrite-timestamp=true", "only layers that leave the store"),
        ("type=image,annotation-foo.k=v", "unknown type \"foo\""),
        ("type=image,source-date-epoch=now", "expected seconds since 1970"),
        ("type=docker,context=other", "DOCKER_HOST"),
        ("type=cacheonly,dest=x", "unknown attribute \"dest\" of output type=cacheonly: it has none"),
        (r#"type=oci,"dest=x"y"#, "follows a closing quote"),
        (r#"type=oci,"dest=x"#, "a quote is not closed"),
        (r#"type=oci,de"st=x"#, "has a quote"),
    ] {
        let got = show(text);
        assert!(got.starts_with("error: ") && got.contains(want), "{text}: {got}");
    }
}
