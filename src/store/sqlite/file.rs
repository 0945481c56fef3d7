//! The store's file as the system sees it: nobody else has it, and it is still where it was.

use super::open::OpenError;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Makes files that only their owner may read: they hold what everybody's messages say.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// The path with something put behind its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens a file, or makes it. Follows a link to a file that is there, and makes none at its end.
fn open_or_make(path: &Path) -> io::Result<File> {
    match private().read(true).write(true).create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => OpenOptions::new().read(true).write(true).open(path),
        made => made,
    }
}

/// What makes a file itself, whatever it is called.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl From<Metadata> for Identity {
    fn from(file: Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino() }
    }
}

/// SQLite's own locks would let two proxies take turns on one file, and both would forward what is in it. So one
/// process owns the store as long as it holds these, which the system takes back however the process ends.
pub(super) struct Held {
    /// The file that stands beside it and says who has it.
    beside: File,
    /// The file itself, for it may have other names. To close it takes from SQLite the locks that this process has on it;
    /// so it is opened before SQLite opens it, and is closed after.
    itself: File,
}

impl Held {
    /// Makes the file, too, if there is none.
    pub(super) fn take(path: &Path) -> Result<Self, OpenError> {
        let beside = lock_beside(path)?;
        let itself = open_or_make(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let reason = "it is a link to a file that is not there".into();
                OpenError::Failed { path: path.into(), reason }
            }
            _ => OpenError::from_io(path, &error),
        })?;
        match itself.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = Some(" under another name".into());
                return Err(OpenError::Locked { path: path.into(), lock: path.into(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(OpenError::from_io(path, &error)),
        }
        if itself.metadata().is_ok_and(|file| file.nlink() > 1) {
            tracing::warn!(?path, "the store's file has a second name; never open it under that one");
        }
        Ok(Self { beside, itself })
    }

    /// Lets go of the file. Said, not left to the end of the descriptors: a child of this process that is just being
    /// started has a copy of them until it runs its own program. Should it fail, the end of the process does it.
    pub(super) fn release(self) {
        let _ = self.itself.unlock();
        let _ = self.beside.unlock();
    }
}

fn lock_beside(path: &Path) -> Result<File, OpenError> {
    let lock = beside(path, ".lock");
    let failed = |error: io::Error| OpenError::from_io(&lock, &error);
    let mut file = open_or_make(&lock).map_err(failed)?;
    // In a folder that others may write it may be a link to somebody's file, and we write into it.
    let named = std::fs::symlink_metadata(&lock).map_err(failed)?;
    if Identity::from(named) != Identity::from(file.metadata().map_err(failed)?) {
        return Err(OpenError::Failed { path: lock, reason: "it is a link".into() });
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = (!holder.trim().is_empty()).then(|| format!(" ({})", holder.trim()));
            return Err(OpenError::Locked { path: path.into(), lock, holder });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // Who has it is told to the second comer as a help; a full disk is no reason to refuse the start.
    let _ =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "process {}", std::process::id()));
    Ok(file)
}

/// The files that the next start would find, and that SQLite has open now. They are the same until somebody deletes one,
/// or puts another in its place; and then SQLite writes, and syncs, what nobody will find.
pub(super) struct Place {
    file: (PathBuf, Identity),
    log: (PathBuf, Identity),
}

impl Place {
    /// Once SQLite has opened both.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        // SQLite puts the log beside the file itself, not beside a link to it.
        let log = beside(&path.canonicalize()?, "-wal");
        let of = |path: PathBuf| Ok::<_, io::Error>((path.clone(), std::fs::metadata(path)?.into()));
        Ok(Self { file: of(path.into())?, log: of(log)? })
    }

    /// Cuts the log off behind so many bytes, and syncs that.
    pub(super) fn cut_log(&self, bytes: u64) -> io::Result<()> {
        let (path, opened) = &self.log;
        let log = OpenOptions::new().write(true).open(path)?;
        let found = log.metadata()?;
        if found.len() > bytes && Identity::from(found) == *opened {
            log.set_len(bytes)?;
            log.sync_all()?;
        }
        Ok(())
    }

    /// Fails if they are no longer the same.
    pub(super) fn check(&self) -> rusqlite::Result<()> {
        for (path, opened) in [&self.file, &self.log] {
            let found = std::fs::metadata(path).map(Identity::from);
            if !found.as_ref().is_ok_and(|found| found == opened) {
                let why = match found {
                    Err(error) if error.kind() != ErrorKind::NotFound => error.to_string(),
                    _ => "deleted, moved or replaced since it was opened".into(),
                };
                let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
                let text = format!("{}: {why}; what is written now would be lost", path.display());
                return Err(rusqlite::Error::SqliteFailure(error, Some(text)));
            }
        }
        Ok(())
    }
}
