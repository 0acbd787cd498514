//! The secrets and agents of a request, as the port that steps ask.

use std::io::Read;
use std::path::PathBuf;

use rbuild_ports::{ErrorKind, PortError, Result, SecretBytes, Secrets};

use crate::{Secret, SecretSource, SshAgent};

/// BuildKit's clients send no larger secret.
const MAX_BYTES: u64 = 500 * 1024;

/// What the request lends.
pub(crate) struct Lent {
    pub(crate) secrets: Vec<Secret>,
    pub(crate) ssh: Vec<SshAgent>,
}

impl Secrets for Lent {
    fn secret(&self, id: &str) -> Result<Option<SecretBytes>> {
        let Some(secret) = self.secrets.iter().rev().find(|secret| secret.id == id) else { return Ok(None) };
        match &secret.source {
            SecretSource::Bytes(bytes) => Ok(Some(bytes.clone())),
            SecretSource::File(path) => {
                let file = std::fs::File::open(path)
                    .map_err(|e| PortError::io("open the secret's file", path, e))?;
                let mut bytes = Vec::new();
                file.take(MAX_BYTES + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|e| PortError::io("read the secret's file", path, e))?;
                if bytes.len() as u64 > MAX_BYTES {
                    return Err(PortError::new(
                        ErrorKind::Invalid,
                        format!("the secret {id:?} is larger than 500 KiB"),
                    )
                    .help("mount large files with --mount=type=bind instead"));
                }
                Ok(Some(SecretBytes(bytes)))
            }
        }
    }

    fn ssh_agent(&self, id: &str) -> Result<Option<PathBuf>> {
        Ok(self.ssh.iter().rev().find(|agent| agent.id == id).map(|agent| agent.socket.clone()))
    }
}
