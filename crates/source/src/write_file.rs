//! Files that are complete or absent.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `file` under another name first, so that readers see the old or the new one. It does not wait for the disk: what
/// is written here is checked when it is read, and may be lost.
pub(crate) fn write_file(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let Some(dir) = file.parent() else { return Ok(()) };
    std::fs::create_dir_all(dir)?;
    let new = dir.join(format!(".new-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    let outcome = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, file));
    if outcome.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    outcome
}
