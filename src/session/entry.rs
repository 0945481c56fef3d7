//! A client's way in, and how many are in.

use crate::places::Place;
use std::sync::Arc;
use tokio::sync::watch;

/// A client's way in: a place among those who have not logged in, then a seat.
#[derive(Debug)]
pub(super) struct Entry {
    place: Option<Place>,
    seats: Arc<Seats>,
    seat: Option<Seat>,
}

/// Counts the clients that are there. The limit is not kept here, because it may change.
#[derive(Debug, Default)]
pub(super) struct Seats(watch::Sender<usize>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat(Arc<Seats>);

impl Entry {
    /// It has a place, and one of `seats` once it has logged in.
    pub(super) fn new(place: Place, seats: &Arc<Seats>) -> Self {
        Self { place: Some(place), seats: Arc::clone(seats), seat: None }
    }

    /// Counts what the client said, as long as it has not logged in.
    pub(super) fn heard(&self, bytes: usize) {
        if let Some(place) = &self.place {
            place.heard(bytes);
        }
    }

    /// It has logged in, and takes a seat if fewer than `max` are taken.
    pub(super) fn sit(&mut self, max: usize) -> bool {
        self.place = None;
        self.seat = self.seats.take(max);
        self.seat.is_some()
    }
}

impl Seats {
    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until none is taken.
    pub(super) async fn all_free(&self) {
        // Fails only without a sender, which is here.
        let _ = self.0.subscribe().wait_for(|taken| *taken == 0).await;
    }

    /// Whether fewer than `max` are taken.
    pub(super) fn has_free(&self, max: usize) -> bool {
        self.taken() < max
    }

    /// One more, if there are fewer than `max`.
    pub(super) fn take(self: &Arc<Self>, max: usize) -> Option<Seat> {
        let is_free = self.0.send_if_modified(|taken| {
            let is_free = *taken < max;
            *taken += usize::from(is_free);
            is_free
        });
        is_free.then(|| Seat(Arc::clone(self)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.send_modify(|taken| *taken -= 1);
    }
}
