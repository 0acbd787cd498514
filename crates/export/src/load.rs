//! `--load`: the image into the Docker of this machine by its API, or into podman by its command. Docker keeps layers
//! unpacked, so they are sent as plain tars, and only those that it does not have: an image that is there already costs
//! one question and its tags.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rbuild_digest::Digest;
use rbuild_oci::Reference;
use rbuild_ports::{ErrorKind, PortError, Result};
use serde_json::Value;

use crate::OutputReport;
use crate::archive::Layout;
use crate::content::Attempt;
use crate::http::{Answer, Socket, stream_error};
use crate::image::PreparedImage;
use crate::layers::PreparedLayer;

/// Images of the engine that are looked at for layers it has.
const LOOK_AT: usize = 32;
/// How much of podman's complaints is kept.
const MAX_STDERR: u64 = 64 << 10;

/// Loads the image into the engine that is there.
pub(crate) fn export(attempt: &Attempt<'_>, image: &PreparedImage) -> Result<OutputReport> {
    let access = attempt.cx.engine;
    let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
    let (bytes, skipped) = match (&access.docker_socket, &access.podman) {
        (Some(socket), _) if socket.exists() => docker(attempt, image, socket)?,
        (_, Some(podman)) => (load_into_podman(attempt, image, podman)?, 0),
        (Some(socket), None) => {
            let message =
                format!("there is no Docker to load the image into: {} does not exist", socket.display());
            return Err(no_engine(message));
        }
        (None, None) => {
            return Err(no_engine("there is neither Docker nor podman to load the image into".to_owned()));
        }
    };
    Ok(OutputReport { kind: "load", target: names.join(", "), bytes, skipped })
}

fn no_engine(message: String) -> PortError {
    PortError::new(ErrorKind::NotFound, message)
        .help("start the engine, or write an archive with -o type=docker,dest=FILE")
}

fn docker(attempt: &Attempt<'_>, image: &PreparedImage, path: &Path) -> Result<(u64, u64)> {
    let socket = Socket::new(path, attempt.cx.cancel);
    let info = json(&socket.call("GET", "/info")?)?;
    let sizes =
        |layers: &[&PreparedLayer]| layers.iter().map(|layer| layer.descriptor.descriptor.size).sum::<u64>();
    let all = image.layers();
    // The containerd store names images by their manifests and wants every blob.
    let mut have = HashSet::new();
    if !uses_containerd(&info)
        && let [platform] = image.platforms.as_slice()
    {
        let id = platform.config.digest;
        if socket.call("GET", &format!("/images/{id}/json"))?.status == 200 {
            tag(attempt, &socket, &id, &image.names)?;
            return Ok((0, sizes(&all)));
        }
        have = layers_there(&socket, image, &platform.layers)?;
    }
    let (skipped, sent): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|layer| have.contains(&layer.descriptor.diff_id));
    match send(attempt, image, &socket, &sent) {
        Err(error)
            if !skipped.is_empty() && error.kind != ErrorKind::Cancelled && attempt.faults.is_empty() =>
        {
            // Somebody removed an image meanwhile, or the engine is of another kind than it seems: all of it, then.
            let all = image.layers();
            send(attempt, image, &socket, &all)?;
            Ok((sizes(&all), 0))
        }
        Err(error) => Err(error),
        Ok(()) => Ok((sizes(&sent), sizes(&skipped))),
    }
}

fn send(
    attempt: &Attempt<'_>,
    image: &PreparedImage,
    socket: &Socket<'_>,
    layers: &[&PreparedLayer],
) -> Result<()> {
    let wanted: Vec<PreparedLayer> = layers.iter().map(|layer| (*layer).clone()).collect();
    attempt.fetch(&wanted)?;
    let layout = Layout::new(image, true, &|layer| wanted.contains(layer))?;
    let answer = socket
        .send("/images/load?quiet=1", &mut |out| layout.write_tar(attempt, out, "the engine's socket"))?;
    if answer.status >= 300 {
        return Err(refused(&answer));
    }
    match stream_error(&answer.body) {
        Some(message) => {
            Err(PortError::new(ErrorKind::Io, format!("the engine could not load the image: {message}")))
        }
        None => Ok(()),
    }
}

fn tag(attempt: &Attempt<'_>, socket: &Socket<'_>, id: &Digest, names: &[Reference]) -> Result<()> {
    for name in names {
        let repository = Reference { tag: None, digest: None, ..name.clone() }.familiar();
        let tag = name.tag.as_deref().unwrap_or("latest");
        let answer = socket.call("POST", &format!("/images/{id}/tag?repo={repository}&tag={tag}"))?;
        if answer.status >= 300 {
            return Err(refused(&answer));
        }
        attempt.cx.progress.status(&format!("naming to {name}"), 1, Some(1), true);
    }
    Ok(())
}

/// Diff ids of the image's lowest layers that some image of the engine has, too.
fn layers_there(
    socket: &Socket<'_>,
    image: &PreparedImage,
    layers: &[PreparedLayer],
) -> Result<HashSet<Digest>> {
    let list = json(&socket.call("GET", "/images/json")?)?;
    let ids = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one.get("Id")?.as_str()?.parse::<Digest>().ok());
    let candidates =
        image.names.iter().map(Reference::familiar).chain(ids.take(LOOK_AT).map(|id| id.to_string()));
    let mut common = 0;
    for name in candidates {
        if common == layers.len() {
            break;
        }
        let answer = socket.call("GET", &format!("/images/{name}/json"))?;
        if answer.status != 200 {
            continue;
        }
        let found = json(&answer)?;
        let theirs = found.pointer("/RootFS/Layers").and_then(Value::as_array);
        let theirs =
            theirs.into_iter().flatten().map(|id| id.as_str().and_then(|id| id.parse::<Digest>().ok()));
        let same =
            layers.iter().zip(theirs).take_while(|(layer, id)| Some(layer.descriptor.diff_id) == *id).count();
        common = common.max(same);
    }
    Ok(layers.iter().take(common).map(|layer| layer.descriptor.diff_id).collect())
}

fn uses_containerd(info: &Value) -> bool {
    let status = info.get("DriverStatus").and_then(Value::as_array);
    status.into_iter().flatten().any(|pair| {
        pair.get(1)
            .and_then(Value::as_str)
            .is_some_and(|value| value.starts_with("io.containerd.snapshotter"))
    })
}

fn json(answer: &Answer) -> Result<Value> {
    if answer.status >= 300 {
        return Err(refused(answer));
    }
    serde_json::from_slice(&answer.body).map_err(|error| {
        PortError::new(ErrorKind::Network, format!("the engine's answer is no JSON: {error}"))
    })
}

fn refused(answer: &Answer) -> PortError {
    let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let message = value.as_ref().and_then(|value| value.get("message")).and_then(Value::as_str);
    let message = message.unwrap_or("it gives no reason");
    PortError::new(ErrorKind::Io, format!("the engine refused the image ({}): {message}", answer.status))
}

fn load_into_podman(attempt: &Attempt<'_>, image: &PreparedImage, podman: &Path) -> Result<u64> {
    let layers: Vec<PreparedLayer> = image.layers().into_iter().cloned().collect();
    attempt.fetch(&layers)?;
    let layout = Layout::new(image, true, &|_| true)?;
    let mut child = Command::new(podman)
        .arg("load")
        .arg("--quiet")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| PortError::io("run", podman, error))?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let child = Arc::new(Mutex::new(child));
    let guard = {
        let child = child.clone();
        attempt.cx.cancel.on_cancel(move || drop(child.lock().unwrap_or_else(PoisonError::into_inner).kill()))
    };
    let (written, complaint) = thread::scope(|scope| {
        let complaint = scope.spawn(move || {
            let mut text = vec![];
            if let Some(mut stderr) = stderr {
                drop(stderr.by_ref().take(MAX_STDERR).read_to_end(&mut text));
                drop(io::copy(&mut stderr, &mut io::sink()));
            }
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        let written = match stdin {
            Some(stdin) => {
                let mut out = io::BufWriter::with_capacity(256 * 1024, stdin);
                let result = layout.write_tar(attempt, &mut out, "podman's input");
                if result.is_err() {
                    // An archive that is cut off must not be loaded.
                    drop(child.lock().unwrap_or_else(PoisonError::into_inner).kill());
                }
                result.and_then(|()| out.flush().map_err(|error| PortError::io("write to", podman, error)))
            }
            None => Ok(()),
        };
        (written, complaint.join().unwrap_or_default())
    });
    drop(guard);
    let status = wait(&child).map_err(|error| PortError::io("wait for", podman, error))?;
    attempt.cx.cancel.check()?;
    match written {
        Err(error) if complaint.is_empty() => return Err(error),
        Ok(()) if status.success() => {}
        _ => {
            let message = format!(
                "podman could not load the image: {}",
                complaint.lines().last().unwrap_or("it failed")
            );
            return Err(PortError::new(ErrorKind::Io, message));
        }
    }
    Ok(layers.iter().map(|layer| layer.descriptor.descriptor.size).sum())
}

/// It has closed its standard error: it ends soon.
fn wait(child: &Mutex<Child>) -> io::Result<std::process::ExitStatus> {
    child.lock().unwrap_or_else(PoisonError::into_inner).wait()
}
