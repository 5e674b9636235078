//! A group that the thread of a lane is working on.

use tokio::sync::mpsc;

use super::{Report, Work};
use crate::buffer::Buffer;
use crate::error::Result;
use crate::hash::GroupHash;

/// A group that is being worked on. What becomes of it is told when this is dropped, so that it is told of a panic, too:
/// the group is lost then, and asked for again, over the first connection when there is no other. What panics there
/// again ends the transfer.
pub(super) struct AtWork {
    group: u64,
    /// None once it holds the file no more.
    work: Option<Work>,
    reports: mpsc::Sender<Report>,
    worked: Option<Result<GroupHash>>,
}

impl AtWork {
    pub(super) fn new(group: u64, work: Work, reports: mpsc::Sender<Report>) -> AtWork {
        AtWork { group, work: Some(work), reports, worked: None }
    }

    /// Does what is to be done with the group.
    pub(super) fn go(mut self, content: Buffer) {
        self.worked = self.work.as_ref().map(|work| work(self.group, content));
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        // Before it is told: whoever hears of the last group takes the file for its own.
        drop(self.work.take());
        let report = self.worked.take().map_or(Report::Lost(self.group), |worked| Report::Worked(self.group, worked));
        // Nobody listening any more is all right: the transfer was given up. There always is room.
        let _ = self.reports.try_send(report);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use super::super::{Carrier, Front, Lanes, Place};
    use super::*;
    use crate::buffer::Pool;
    use crate::client::shelf::Shelf;
    use crate::limits::GROUP_LEN;
    use crate::net::Handler as _;

    /// A lane of this kind that was asked for the groups 0 and 1 of transfer 7.
    fn lane(lanes: &Lanes, carrier: &Carrier, place: Place) -> Front {
        assert_eq!(lanes.missing(2), 1);
        let number = lanes.enter(place).unwrap();
        let mut groups = 0..2;
        assert_eq!(carrier.ask(2 * GROUP_LEN as u64, 2, || groups.next()).groups, 2);
        Front::let_in(lanes, number, place, &Pool::new(4 * GROUP_LEN))
    }

    /// The groups that were told to be lost, ascending, when nothing else was told.
    async fn lost(carrier: &mut Carrier, count: usize) -> Vec<u64> {
        let mut groups = Vec::new();
        while groups.len() < count {
            let report = {
                let mut next = pin!(carrier.next());
                std::future::poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await
            };
            match report {
                Poll::Ready(Report::Lost(group)) => groups.push(group),
                Poll::Ready(Report::MayAsk) => {}
                Poll::Ready(_) => panic!("something else was told"),
                Poll::Pending => panic!("only {groups:?} were told"),
            }
        }
        groups.sort_unstable();
        groups
    }

    #[tokio::test]
    async fn a_lane_whose_thread_panics_tells_what_it_owed_and_had_in_work() {
        let lanes = Lanes::new();
        let mut carrier = lanes.carry(7, Shelf::default());
        let file = Arc::new(());
        let held = Arc::clone(&file);
        carrier.let_work(Arc::new(move |_, _| {
            let _held = &held;
            panic!("on purpose");
        }));
        let mut front = lane(&lanes, &carrier, Place::Thread);
        let thread = std::thread::spawn(move || {
            let mut cx = Context::from_waker(Waker::noop());
            let Poll::Ready(Ok(space)) = front.poll_space(&mut cx, 7, 0, GROUP_LEN) else { return };
            space.fill(3);
            front.filled(7, 0, GROUP_LEN).unwrap();
        });
        assert!(thread.join().is_err(), "the work panicked");
        assert_eq!(lost(&mut carrier, 2).await, [0, 1]);
        assert!(lanes.count() == 0);
        assert!(carrier.next_of_rest().await.is_none());
        assert_eq!(Arc::strong_count(&file), 1, "nobody holds the file any more");
    }

    #[tokio::test]
    async fn a_lane_that_is_dropped_lays_down_what_it_began_before_it_tells_what_it_owed() {
        let lanes = Lanes::new();
        let (looking, (laid, is_laid)) = (lanes.clone(), std::sync::mpsc::channel());
        let shelf = Shelf::default();
        shelf.tell(move || laid.send(looking.count() > 0).unwrap());
        let mut carrier = lanes.carry(7, shelf.clone());
        let mut front = lane(&lanes, &carrier, Place::Task);
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(_)) = front.poll_space(&mut cx, 7, 0, 1000) else { panic!("no space") };
        front.filled(7, 0, 1000).unwrap();
        drop(front);
        assert_eq!(lost(&mut carrier, 2).await, [0, 1]);
        assert_eq!(shelf.begun(0), 1000);
        assert!(is_laid.recv().unwrap() && lanes.count() == 0, "it was laid there before the lane had left");
    }
}
