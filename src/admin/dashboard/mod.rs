//! The dashboard: the files beside this one, in the binary as they stand.

use std::sync::LazyLock;

use ring::digest;

/// One of the dashboard's files, as a browser gets it.
#[derive(Debug)]
pub(super) struct File {
    /// The path in a URL.
    pub(super) path: &'static str,
    /// The value of `Content-Type`.
    pub(super) media_type: &'static str,
    /// What it holds.
    pub(super) bytes: &'static [u8],
    /// The value of `ETag`: made of what the file holds.
    pub(super) etag: String,
}

static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    const HTML: &str = "text/html; charset=utf-8";
    vec![text("/", HTML, include_str!("index.html"))]
});

/// The file under this path of a URL.
pub(super) fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

fn text(path: &'static str, media_type: &'static str, text: &'static str) -> File {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    let number = digest.as_ref().iter().take(16).fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    File { path, media_type, bytes: text.as_bytes(), etag: format!("\"{number:032x}\"") }
}
