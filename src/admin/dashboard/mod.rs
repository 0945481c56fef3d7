//! The dashboard: the files beside this one, in the binary as they stand. A browser runs them; `app.js` is where to begin.

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

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of this folder, under the same name below `/assets/`.
macro_rules! asset {
    ($media_type:expr, $name:literal) => {
        text(concat!("/assets/", $name), $media_type, include_str!($name))
    };
}

static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    vec![
        text("/", HTML, include_str!("index.html")),
        asset!(SVG, "icon.svg"),
        asset!(CSS, "base.css"),
        asset!(CSS, "parts.css"),
        asset!(SCRIPT, "theme.js"),
        asset!(SCRIPT, "app.js"),
        asset!(SCRIPT, "api.js"),
        asset!(SCRIPT, "live.js"),
        asset!(SCRIPT, "text.js"),
        asset!(SCRIPT, "dom.js"),
        asset!(SCRIPT, "parts.js"),
        asset!(SCRIPT, "dialog.js"),
        asset!(SCRIPT, "list.js"),
        asset!(SCRIPT, "chart.js"),
        asset!(SCRIPT, "views/login.js"),
        asset!(SCRIPT, "views/overview.js"),
        asset!(SCRIPT, "views/transactions.js"),
        asset!(SCRIPT, "views/transaction.js"),
        asset!(SCRIPT, "views/messages.js"),
        asset!(SCRIPT, "views/letters.js"),
        asset!(SCRIPT, "views/letter.js"),
        asset!(SCRIPT, "views/connections.js"),
        asset!(SCRIPT, "views/checkers.js"),
        asset!(SCRIPT, "views/configuration.js"),
    ]
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_file_of_the_folder_is_served_and_names_no_other_host() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/dashboard");
        let mut names: Vec<String> = [folder.clone(), folder.join("views")]
            .iter()
            .flat_map(|folder| std::fs::read_dir(folder).expect("a folder"))
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.is_file() && !path.ends_with("mod.rs"))
            .map(|path| path.strip_prefix(&folder).expect("it is within").display().to_string())
            .map(|name| if name == "index.html" { "/".to_owned() } else { format!("/assets/{name}") })
            .collect();
        let mut served: Vec<&str> = FILES.iter().map(|file| file.path).collect();
        names.sort_unstable();
        served.sort_unstable();
        assert_eq!(names, served);
        for File { path, bytes, .. } in FILES.iter() {
            let text = std::str::from_utf8(bytes).expect("a text").replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("://"), "{path} names another host");
        }
    }
}
