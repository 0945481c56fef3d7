//! The file under other names, and away from where it was.

use super::*;
use std::os::unix::fs::symlink;

fn refused(path: &Path) -> String {
    try_open(path).expect_err("refused").to_string()
}

/// By another name a second proxy ran beside the first and damaged its transactions.
#[tokio::test]
async fn one_process_at_a_time_under_whatever_name() {
    let folder = Folder::new();
    let store = open(&folder.db());
    let (soft, hard) = (folder.0.path().join("soft.db"), folder.0.path().join("hard.db"));
    symlink(folder.db(), &soft).unwrap();
    std::fs::hard_link(folder.db(), &hard).unwrap();
    for name in [&soft, &hard] {
        let words = refused(name);
        assert!(words.contains("in use by another process under another name"), "{words}");
    }
    store.commit(commit(&origin(), 10)).await.unwrap();
    store.close();
    std::fs::remove_file(hard).unwrap();
    // A link is a name as good as another.
    let store = open(&soft);
    assert_eq!(committed(&store).await.len(), 1);
    assert!(refused(&folder.db()).contains("under another name"));
    store.commit(commit(&origin(), 10)).await.unwrap();
}

#[test]
fn nothing_is_made_or_written_at_the_end_of_a_link() {
    let folder = Folder::new();
    let target = folder.0.path().join("elsewhere");
    symlink(&target, folder.db()).unwrap();
    let words = refused(&folder.db());
    assert!(words.contains("halfway.db") && words.contains("a link to a file that is not there"), "{words}");
    assert!(!target.exists());

    let folder = Folder::new();
    let (lock, target) = (folder.0.path().join("halfway.db.lock"), folder.0.path().join("diary"));
    symlink(&target, &lock).unwrap();
    assert!(refused(&folder.db()).contains("halfway.db.lock"));
    assert!(!target.exists());
    std::fs::write(&target, "dear diary").unwrap();
    let words = refused(&folder.db());
    assert!(words.contains("halfway.db.lock") && words.contains("it is a link"), "{words}");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "dear diary");
}

/// Commits were answered, and lost with the process.
#[tokio::test]
async fn what_nobody_would_find_is_not_written() {
    for name in ["halfway.db", "halfway.db-wal"] {
        let folder = Folder::new();
        let store = open(&folder.db());
        let before = origin();
        store.commit(commit(&before, 10)).await.unwrap();
        let (path, away) = (folder.0.path().join(name), folder.0.path().join("away"));
        std::fs::rename(&path, &away).unwrap();
        // Has the writer look after things now, as it does every half minute.
        store.change_limits(Limits {
            max_size: u64::MAX,
            max_size_per_user: u64::MAX,
            retention: Duration::from_secs(60),
        });
        eventually("it is noticed though nobody writes", || store.stats().failing.load(Ordering::Relaxed)).await;
        for replaced in [false, true] {
            if replaced {
                std::fs::copy(&away, &path).unwrap();
            }
            let refused = store.commit(commit(&origin(), 10)).await;
            assert!(
                matches!(&refused, Err(StoreError::Io(why)) if why.contains(name) && why.contains("replaced")),
                "{refused:?}"
            );
            assert!(store.stats().failing.load(Ordering::Relaxed));
            assert_eq!(committed(&store).await, BTreeSet::from([before.id]), "the relay has what was committed");
        }
        std::fs::rename(&away, &path).unwrap();
        eventually("it is well again unasked", || !store.stats().failing.load(Ordering::Relaxed)).await;
        let after = origin();
        store.commit(commit(&after, 10)).await.unwrap();
        store.close();
        assert_sound(&folder.db());
        assert_eq!(committed(&open(&folder.db())).await, BTreeSet::from([before.id, after.id]));
    }
}
