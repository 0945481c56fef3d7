//! What stepped aside of a lane.

use super::*;

#[tokio::test]
async fn a_restart_finds_what_stepped_aside_and_no_lane_is_kept_for_what_has_gone() {
    let folder = Folder::new();
    let store = open(&folder.db());
    let aside = |strand| Lane { aside: Some(Strand(strand)), ..lane() };
    let mut sequences = Vec::new();
    for strand in 0..3 {
        let tx = Origin { strand: Strand(strand), ..origin() };
        sequences.push(now(store.commit(commit(&tx, 10)).await));
        store.step_aside(&aside(strand), vec![sequences[strand as usize]]).await.unwrap();
    }
    store.delivered(vec![sequences[1]]);
    store.close();
    let counted = stats(&folder.db()).unwrap().lanes;
    assert_eq!(counted.iter().map(|lane| (lane.lane, lane.committed)).collect::<Vec<_>>(), [(0, 2)]);
    let store = open(&folder.db());
    assert_eq!(store.lanes().await.unwrap(), [aside(0), aside(2)]);
    let sql = rusqlite::Connection::open(folder.db()).unwrap();
    let lanes = "SELECT count(*) FROM lanes WHERE aside <> -1";
    assert_eq!(sql.query_row(lanes, [], |row| row.get::<_, i64>(0)).unwrap(), 2);
    // They are known to the writer by their number still, or again.
    store.step_aside(&aside(1), vec![sequences[0]]).await.unwrap();
    assert_eq!(store.lanes().await.unwrap(), [aside(1), aside(2)]);
    assert_sound(&folder.db());
}
