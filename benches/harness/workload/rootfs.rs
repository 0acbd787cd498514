//! The large base image as data: a list of files whose sizes and mixture resemble a distribution with an application on
//! it, chosen so that gzip leaves 44 % of it. Pure.

use super::content::{Rng, Texture};
use super::{FileSpec, Scale};

/// Thousandths of the bytes that are noise: with text at about 29 %, gzip leaves 44 % of the whole.
const NOISE: u64 = 215;

/// The files of the large base, by path. Together they have `scale.base_bytes`.
pub(crate) fn rootfs(scale: &Scale, seed: u64) -> Vec<FileSpec> {
    let mut rng = Rng::fork(seed, 2);
    let mut files = vec![FileSpec {
        path: "srv/sample".into(),
        texture: Texture::Text,
        seed: rng.next(),
        length: 100_000.min(scale.base_bytes),
    }];
    let mut total = files[0].length;
    let mut noise = 0;
    let mut number = 0u64;
    while total < scale.base_bytes {
        let length = match rng.between(0, 100) {
            0..60 => rng.between(500, 16_000),
            60..95 => rng.between(16_000, 128_000),
            _ => rng.between(128_000, 2_000_000),
        }
        .min(scale.base_bytes - total);
        let texture = if noise * 1000 < total * NOISE { Texture::Random } else { Texture::Text };
        if texture == Texture::Random {
            noise += length;
        }
        let folder = match texture {
            Texture::Text => "usr/share",
            Texture::Random => "usr/lib",
        };
        let path = format!("{folder}/{:03}/{number:05}", number / 100);
        files.push(FileSpec { path, texture, seed: rng.next(), length });
        total += length;
        number += 1;
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_published_size_and_many_files() {
        let files = rootfs(&Scale::FULL, 1);
        assert_eq!(files.iter().map(|file| file.length).sum::<u64>(), Scale::FULL.base_bytes);
        assert!((5_000..20_000).contains(&files.len()), "{}", files.len());
        assert!(files.iter().any(|file| file.path == "srv/sample"));
        assert!(files.is_sorted_by(|a, b| a.path < b.path));
    }

    #[test]
    fn a_seed_decides_it() {
        assert_eq!(rootfs(&Scale::QUICK, 3), rootfs(&Scale::QUICK, 3));
        assert_ne!(rootfs(&Scale::QUICK, 3), rootfs(&Scale::QUICK, 4));
    }
}
