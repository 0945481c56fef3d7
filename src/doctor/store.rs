//! The store: its folder, and its file.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use super::{Advice, Finding, Fitness, word};
use crate::config::{self, StoreUrl};
use crate::store::Weakness;

const NEARLY_FULL_PERCENT: u64 = 80;

/// Looks at the store, if there is one yet, and where it is.
pub(super) fn examine(store: &config::Store) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(path) = store.url.file() {
        findings.push(place(path));
        if !path.exists() {
            return findings;
        }
    }
    findings.extend(contents(&store.url, store.max_size));
    findings
}

/// Whether the folder of the store takes a synced write, and keeps it.
fn place(path: &Path) -> Finding {
    let what = format!("folder of the store {}", path.display());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let took = match synced_write(folder) {
        Ok(took) => took.as_secs_f64() * 1000.0,
        Err(error) => {
            let text = format!("cannot write in {}: {error}", folder.display());
            return Finding { what, fitness: Fitness::Failed(unwritable(&error, folder)), text };
        }
    };
    let kind = fs::canonicalize(folder).ok().and_then(|folder| {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        file_system(&mounts, &folder)
    });
    match kind.as_deref() {
        Some(kind @ ("tmpfs" | "ramfs")) => Finding::failed(
            what,
            format!("{kind} is memory"),
            "what is committed there does not survive a crash",
            "set store.url to a file on a local disk: HALFWAY_STORE__URL=sqlite:/var/lib/halfway/halfway.db",
        ),
        Some("overlay") => Finding::warning(
            what,
            "lies in a container's own layer",
            "what is committed there is lost with the container",
            format!("docker run -v halfway:{} ..., or a volume of the pod", word(&folder.display().to_string())),
        ),
        kind => {
            let kind = kind.unwrap_or("unknown file system");
            Finding::fine(what, format!("{kind}, a synced write takes {took:.1} ms"))
        }
    }
}

/// Whether it is a store that this version can read, and what in it waits for a person; `halfway store check` reads
/// all of it.
fn contents(url: &StoreUrl, bytes_max: u64) -> Vec<Finding> {
    let what = |part: &str| format!("store {url}{part}");
    let stats = match url.stats() {
        Ok(stats) => stats,
        Err(error) if error.is_missing() => return vec![Finding::fine(what(""), error.to_string())],
        Err(error) => {
            let why = "the proxy does not start on it";
            let cure = match url.file() {
                Some(_) => {
                    "halfway store check; if it is damaged, put a backup in its place, without -wal and -shm beside it"
                }
                None => "mend what it says; the proxy makes a store that is not there yet when it starts",
            };
            return vec![Finding::failed(what(""), error.to_string(), why, cure)];
        }
    };
    let text = format!("committed transactions that wait: {}; in doubt: {}", stats.committed, stats.in_doubt);
    let mut findings = vec![Finding::fine(what(""), text)];
    for Weakness { text, why, cure } in url.weaknesses().unwrap_or_default() {
        findings.push(Finding::warning(what(": durability"), text, why, cure));
    }
    if stats.used_bytes > bytes_max / 100 * NEARLY_FULL_PERCENT {
        findings.push(Finding::warning(
            what(": size"),
            format!("{} of {} are in use", bytesize::ByteSize(stats.used_bytes), bytesize::ByteSize(bytes_max)),
            "at store.max_size publishers of transactions have to wait",
            "halfway store stats tells what grows: a backlog, or what is in doubt; or raise store.max_size",
        ));
    }
    if stats.dead_letters > 0 {
        findings.push(Finding::warning(
            what(": dead letters"),
            format!("waiting for a person: {}", stats.dead_letters),
            "they are committed and reach RabbitMQ only when somebody has them tried again",
            "halfway dead list; remove the cause; halfway dead retry --all --yes --reason TEXT",
        ));
    }
    findings
}

/// What to make of a folder that takes no write.
fn unwritable(error: &io::Error, folder: &Path) -> Advice {
    let folder = word(&folder.display().to_string());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Advice {
            why: "until there is room nothing can be committed or decided; what was promised is kept",
            cure: format!("df -h {folder}; df -i {folder}; make room there: a proxy that runs goes on by itself"),
        },
        io::ErrorKind::ReadOnlyFilesystem => Advice {
            why: "nothing can be committed or decided",
            cure: format!("findmnt --target {folder}; dmesg tells whether the disk failed; then mount it read-write"),
        },
        _ => Advice {
            why: "nothing can be committed, so the proxy does not start",
            cure: format!("as root: install -d -o USER {folder}, with the proxy's user"),
        },
    }
}

fn synced_write(folder: &Path) -> io::Result<Duration> {
    let path = folder.join(format!(".halfway-doctor-{}", process::id()));
    let write = || {
        let mut file = File::create_new(&path)?;
        let start = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_all()?;
        Ok(start.elapsed())
    };
    let result = write();
    // Where it could not be made, there is nothing to remove.
    let _ = fs::remove_file(&path);
    result
}

/// The type of the file system that holds `folder`: the last mount with the longest matching path.
fn file_system(mounts: &str, folder: &Path) -> Option<String> {
    let mut by_depth = BTreeMap::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else { continue };
        // The kernel writes blanks so, because they separate the fields.
        let point = PathBuf::from(point.replace("\\040", " "));
        if folder.starts_with(&point) {
            by_depth.insert(point.components().count(), kind.to_owned());
        }
    }
    by_depth.into_values().next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_tells_the_file_system() {
        let mounts = "overlay / overlay rw 0 0\ntmpfs /run tmpfs rw 0 0\n/dev/sda1 /run/my\\040data ext4 rw 0 0\n";
        for (folder, kind) in
            [("/var/lib", "overlay"), ("/run/x", "tmpfs"), ("/run/my data/a", "ext4"), ("/runner", "overlay")]
        {
            assert_eq!(file_system(mounts, Path::new(folder)).as_deref(), Some(kind), "{folder}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_fails_and_a_good_one_is_left_as_it_was() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        synced_write(folder.path()).expect("a writable folder");
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
        let finding = place(&folder.path().join("missing/halfway.db"));
        assert!(matches!(finding.fitness, Fitness::Failed(_)), "{finding:?}");
    }

    #[test]
    fn a_full_disk_wants_room_and_a_missing_folder_to_be_made() {
        for (kind, cure) in [
            (io::ErrorKind::StorageFull, "df -h /data"),
            (io::ErrorKind::QuotaExceeded, "df -h /data"),
            (io::ErrorKind::ReadOnlyFilesystem, "findmnt --target /data"),
            (io::ErrorKind::NotFound, "as root: install -d -o USER /data"),
            (io::ErrorKind::PermissionDenied, "as root: install -d -o USER /data"),
        ] {
            let advice = unwritable(&kind.into(), Path::new("/data"));
            assert!(advice.cure.starts_with(cure), "{kind}: {}", advice.cure);
        }
    }

    #[test]
    fn a_file_that_is_no_store_fails() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("halfway.db");
        fs::write(&path, [7; 8192]).expect("written");
        let url = StoreUrl::try_from(format!("sqlite:{}", path.display())).expect("a URL");
        assert!(matches!(contents(&url, 1)[0].fitness, Fitness::Failed(_)));
    }
}
