//! Users who have more than their share.

use super::*;

#[tokio::test]
async fn who_has_more_than_a_share_has_it_after_a_restart_too() {
    let folder = Folder::new();
    let settings = SqliteSettings { max_size_per_user: Some(1 << 20), ..SqliteSettings::new(folder.db()) };
    let store = SqliteStore::open(settings.clone(), Arc::new(Silent)).unwrap();
    let of = |user: &str, origin: Origin| Origin { user: user.into(), ..origin };
    let mut heavy = store.heavy_users();
    let held = of("much", named("order", Some(1)));
    for part in 0..3 {
        assert!(heavy.borrow().is_empty(), "not with {part} parts");
        store.park(held.clone(), batch(400_000)).await.unwrap();
    }
    now(store.commit(commit(&of("little", origin()), 500_000)).await);
    let is_it = |heavy: &std::collections::HashSet<Arc<str>>| heavy.len() == 1 && heavy.contains("much");
    tokio::time::timeout(DEADLINE, heavy.wait_for(|heavy| is_it(heavy))).await.unwrap().unwrap();
    assert!(store.room().borrow().is_free(), "for all others");
    drop(store);

    let store = SqliteStore::open(settings, Arc::new(Silent)).unwrap();
    let mut heavy = store.heavy_users();
    tokio::time::timeout(DEADLINE, heavy.wait_for(|heavy| is_it(heavy))).await.unwrap().unwrap();
    store.decide(Target::Id(held.id), Decision::RollBack, Actor::Control, None).await.unwrap();
    tokio::time::timeout(DEADLINE, heavy.wait_for(|heavy| heavy.is_empty())).await.unwrap().unwrap();
    store.change_limits(Limits { max_size: 1 << 30, max_size_per_user: 400_000, retention: Duration::from_secs(60) });
    let is_other = |heavy: &std::collections::HashSet<Arc<str>>| heavy.len() == 1 && heavy.contains("little");
    tokio::time::timeout(DEADLINE, heavy.wait_for(|heavy| is_other(heavy))).await.unwrap().unwrap();
}
